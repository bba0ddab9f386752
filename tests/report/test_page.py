"""The page shows what the records hold, leaves out missing stages, loads nothing and escapes every text."""

import re
from pathlib import Path
from typing import Any

import pytest

from shears.errors import InputError
from shears.report.page import write_report
from tests.report.made import RANKS, Reader, page_of, records, write_run

HOSTILE = "</script></pre><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&<b>$x$"


def test_the_page_shows_what_the_records_hold(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    text = Reader(page).text
    shown = [
        "sparse + sub-adapter minus dense+0.0-65.3 to +65.31, 11.00",
        "sparse + sub-adapter minus sparse+25.0-38.3 to +71.71, 00.50",  # McNemar's mid-p of 1 against 0 is 1/2
        "trained 300 steps on 30,000 completion tokens",
        "evaluated 4 configurations on validation.jsonl by strategy random.",
        "sparse + sub-adapter (right): sparse + sub-adapter says 1",
        "train22.6yesa processor, 2 threads",  # the stage began at "2" and took 2.6 minutes
        "epochs: 1.0",
    ]
    assert [words for words in shown if words not in text] == []
    for share in ("25.0", "50.0", "75.0"):  # zeros of the three layers
        assert f">{share}</text>" in page
    assert page == page_of(tmp_path / "again").replace("again/", "")  # but for the folder in a command


def test_no_text_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    plain = Reader(page_of(tmp_path / "plain"))
    files = records(prompt=HOSTILE)
    files["recipe.yaml"] |= {"model": HOSTILE, HOSTILE: {HOSTILE: 1}}
    files["evaluation.json"] |= {"task": HOSTILE, "data": HOSTILE}
    files["search/result.json"]["config"] |= {"strategy": HOSTILE}
    files["sub_adapter/sub_adapter.json"]["ranks"] = {**RANKS, f"layers.1.{HOSTILE}": 4}
    files["sparse/sparsity.json"]["config"]["method"] = HOSTILE
    page = page_of(tmp_path / "hostile", files)
    reader = Reader(page)
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in plain.elements}
    assert not {"script", "img", "image"} & {tag for tag, _ in reader.elements}
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert reader.text.count(HOSTILE) >= 6
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {str(attributes["href"])[1:] for tag, attributes in reader.elements if tag == "a"} <= set(ids)


def test_a_folder_of_compress_has_its_page(tmp_path: Path) -> None:
    package = {"name": "s50-int4", "bytes": 95_000_000, "bits_per_weight": 4.2, "tokens_per_second": 60.0}
    record = {
        "model": "some-model", "target": "at most 1 GB", "held_out": "held.txt", "machine": "a processor",
        "order": "rule", "parameters": 135_000_000, "chosen": "s50-int4", "rival": None,
        "candidates": [{**package, "meets": True}],
        "measured": [{**package, "loss": 2.5, "answers": None, "holds": True}],
        "dense": {"bytes": 270_000_000, "tokens_per_second": 20.0, "held_out_loss": 2.4, "answers": None},
        "stages": [{"name": "plan", "work": "measures", "seconds": 60.0}], "effort": {"name": "quick"},
    }  # fmt: skip
    text = Reader(write_report(write_run(tmp_path / "made", {"compress.json": record})).read_text()).text
    assert (
        "some-model, compressed to at most 1 GB: shears made 1 of 1 candidates, and s50-int4 meets the target." in text
    )
    assert "s50-int495.0 MB4.2602.5yes" in text
    assert "planmeasures1.01.0" in text


def _torn(folder: Path) -> dict[str, Any]:
    (write_run(folder / "run") / "evaluation.json").write_text('{"models": [')
    return {"run": folder / "run"}


def _lacking(folder: Path) -> dict[str, Any]:
    return {"run": write_run(folder / "run", {"evaluation.json": {"models": [{"name": "dense"}]}})}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: {"run": folder / "nowhere"}, "a report needs the folder of a run"),
        (_torn, "evaluation.json cannot be read"),
        (_lacking, "run cannot be read: it lacks 'metric'"),
        (lambda folder: {"run": write_run(folder / "run"), "output": folder / "none" / "a.html"}, "does not exist"),
        (lambda folder: {"run": write_run(folder / "run"), "output": folder / "recipe.yaml"}, "must be an .html file"),
    ],
)
def test_what_cannot_be_reported_is_refused(tmp_path: Path, made: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_report(**made(tmp_path))
