"""The page shows what the records hold, leaves out missing stages, and escapes every text."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from shears.errors import InputError
from shears.report.page import write_report
from tests.report.made import FILES, RANKS, Reader, crowded, page_of, records, write_run

HOSTILE = "</script></pre><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&<b>"
CONTENTS = {
    "sparse/sparsity.json": "Share of zeros",
    "super_adapter/training_log.jsonl": "Training loss",
    "search/result.json": "configurations: loss against parameters",
    "evaluation.json": "95\N{NO-BREAK SPACE}% interval",
}


def test_the_page_shows_what_the_records_hold(tmp_path: Path) -> None:
    text = Reader(page_of(tmp_path)).text.replace("\N{NO-BREAK SPACE}", " ")
    untrained = "dense, which was not trained on the task"
    assert f"+0.0 pointssparse + sub-adapter minus {untrained}95 % interval -65.3 to +65.3; 50.0 % against 50" in text
    assert "of 4 questions, 1 right only by the first and 1 only by the second-25.0 pointssparse minus dense" in text
    assert "1.61xfewer non-zero weights" in text
    assert f"Sparse + sub-adapter is level with {untrained} (95 % interval -65.3 to +65.3; 50.0 % against" in text
    assert "It has 1.61x fewer non-zero weights than the dense model." in text  # 1000 / (600 + 20)
    assert "300 steps on 30 k completion tokens, 100 a step. The steps took 2 min 30 s, 200 completion tokens" in text
    assert "Times on a processor, 2 threadsstagetimestartstrain2 min 34 s2, 1 not finishedall2 min 34 s" in text
    assert "random on validation.jsonl: 4 configurations measured, 2 of them on the front" in text
    assert "sparse + sub-adapter says 1" in text
    # three of four agree; the sub-adapter has one more right: McNemar's mid-p of 1 against 0 is 1/2
    assert "sparse + sub-adapter against sparse+25.0-38.3 to +71.7100.5" in text
    assert "sparsify0.1.03" in text  # stage, version, seed
    for share in ("25.0 %", "50.0 %", "75.0 %"):  # zeros of the three layers
        assert share in text


@pytest.mark.parametrize("missing", FILES)
def test_a_stage_that_is_not_there_is_left_out(tmp_path: Path, missing: str) -> None:
    files = {name: content for name, content in records().items() if name != missing}
    page = page_of(tmp_path, files)
    assert CONTENTS.get(missing, "window.hacked") not in page
    assert all(words in page for name, words in CONTENTS.items() if name != missing)


@pytest.mark.parametrize("only", [name for name in FILES if name.endswith(".json")])
def test_one_stage_alone_makes_a_page(tmp_path: Path, only: str) -> None:
    assert "<h1>run</h1>" in page_of(tmp_path, {only: records()[only]})


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    files = records(prompt=HOSTILE)
    plain = Reader(page_of(tmp_path / "plain"))
    files["recipe.yaml"] |= {"model": HOSTILE, HOSTILE: {HOSTILE: 1}}
    files["evaluation.json"] |= {"task": HOSTILE, "data": HOSTILE}
    files["search/result.json"]["config"] |= {"strategy": HOSTILE}
    files["sub_adapter/sub_adapter.json"]["ranks"] = {**RANKS, f"layers.1.{HOSTILE}": 4}
    files["sparse/sparsity.json"]["config"]["method"] = HOSTILE
    reader = Reader(page_of(tmp_path / "hostile", files))
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in plain.elements}
    assert len(reader.named("script")) == 1
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert reader.text.count(HOSTILE) >= 8


def test_a_folder_named_like_markup_is_a_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>")
    assert not Reader(write_report(run).read_text()).named("img")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert not re.search(r"https?:|url\(|@import", page)
    links = {attributes["href"] for attributes in Reader(page).named("a")}
    assert all(str(link).startswith("#") for link in links)


def test_every_picture_has_a_name_and_its_table_behind_it(tmp_path: Path) -> None:
    reader = Reader(page_of(tmp_path))
    drawings, figures = reader.named("svg"), reader.named("figure")
    assert len(drawings) == len(figures) == 7
    assert all(drawing["aria-label"] for drawing in drawings)
    order = [tag for tag, _ in reader.elements if tag in ("figure", "figcaption", "svg", "details", "table")]
    assert " ".join(order).count("figure figcaption svg details table") == 7


def test_the_table_behind_a_picture_holds_all_that_it_shows(tmp_path: Path) -> None:
    page = page_of(tmp_path, crowded())
    reader = Reader(page)
    points, buttons = (
        {each["data-copy"] for each in reader.named(tag) if "data-copy" in each} for tag in ("g", "button")
    )
    assert len(points) == 80
    assert points == buttons
    tables = {
        name: rows.count("<tr>") - 1 for name, rows in re.findall(r"<caption>([^<]*)</caption>(.*?)</table>", page)
    }
    drawn = [len(str(line["points"]).split()) for line in reader.named("polyline")]
    assert drawn[:4] == [200] * 4  # loss and speed, each as it is and smoothed
    assert (tables["Training loss"], tables["Speed of training"], tables["Search, in order"]) == (200, 200, 80)
    assert "mean over 15 steps" in page


def test_ids_are_unique_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    reader = Reader(page_of(tmp_path))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {str(attributes["href"])[1:] for attributes in reader.named("a")} <= set(ids)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert write_report(run, tmp_path / "a.html").read_bytes() == write_report(run, tmp_path / "b.html").read_bytes()


def test_a_command_is_copied_as_a_shell_reads_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my $runs")
    points = [
        attributes for attributes in Reader(write_report(run).read_text()).named("g") if "data-copy" in attributes
    ]
    expected = f"shears export '{run}/super_adapter' sub_adapter --ranks '{run}/search/result.json:3'"
    assert [point["data-copy"] for point in points][-1] == expected  # the chosen one is drawn last
    assert [point.get("tabindex") for point in points] == [None, None, "0", "0"]


def test_two_runs_are_compared(tmp_path: Path) -> None:
    one, files = write_run(tmp_path / "one"), records()
    files["recipe.yaml"]["train"]["epochs"] = 3.0
    files["recipe.yaml"]["serve"] = {"port": 1}  # no run reads that
    other = write_run(tmp_path / "two", files)
    text = Reader(write_report(one, compare=other).read_text()).text
    assert "one: dense" in text
    assert "two: sparse + sub-adapter" in text
    assert "train.epochs1.03.0" in text
    assert "serve.port" not in text
    assert "sparse: one against two+0.0" in text
    files["evaluation.json"]["task"] = "equation"
    text = Reader(write_report(one, compare=write_run(tmp_path / "two", files)).read_text()).text
    assert "Their figures are not comparable: the tasks are number and equation." in text
    assert "one: dense" not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "which is not a folder"),
        (lambda folder: folder, "which has no records"),
    ],
)
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_report(make(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_torn_records_and_unusable_outputs_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for output in (tmp_path, run / "recipe.yaml", tmp_path / "none" / "report.html"):
        with pytest.raises(InputError, match=r"the output must be an .html file in an existing folder"):
            write_report(run, output)
    assert (run / "recipe.yaml").read_text().startswith("model:")  # a record is not written over
    recipe = (run / "recipe.yaml").read_text() if (run / "recipe.yaml").is_file() else ""
    for torn in ("a: [1,", "a: " + "[" * 10_000, "a: " + "9" * 5000):
        (run / "recipe.yaml").write_text(torn)
        with pytest.raises(InputError, match=r"recipe.yaml must be a YAML file, got .*; write it again"):
            write_report(run)
    (run / "recipe.yaml").write_text(recipe)
    (run / "super_adapter" / "training_log.jsonl").write_text("{")
    with pytest.raises(InputError, match="one JSON object per line"):
        write_report(run)
    (run / "super_adapter" / "training_log.jsonl").write_text("")
    (run / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        write_report(run)
    (run / "evaluation.json").write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", {"task": "number", "data": "t", "models": [{"name": "dense"}]}),
        ("evaluation.json", {"task": "number", "data": "t", "models": 3}),
        ("evaluation/dense.json", {"records": [1, 2]}),
        ("sparse/sparsity.json", {"achieved": 0.5}),
        ("sparse/sparsity.json", {"achieved": "half", "linears": {}, "config": {}}),
        ("super_adapter/training_log.jsonl", [{"step": 1}]),
        ("super_adapter/training_log.jsonl", [[]]),
        ("super_adapter/training_times.jsonl", [{"step": 1}]),
        ("search/result.json", {"evaluations": {}}),
        ("search/result.json", {**records()["search/result.json"], "chosen": None}),
        ("sub_adapter/sub_adapter.json", {"ranks": [1]}),
        ("bench.json", {"ratios": []}),
        ("recipe.yaml", {"export": [1]}),
    ],
)
def test_incomplete_records_give_an_error_of_one_line(name: str, content: Any, tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    write_run(run, {name: content})
    for compare in (None, other):
        with pytest.raises(InputError, match=r"^the records in .* must be as shears wrote them, got .*; make them"):
            write_report(run, compare=compare)
    assert not (run / "report.html").exists()


def test_half_a_character_and_undecodable_folder_names_become_question_marks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="shears")  # xdist cannot pass on such a name
    files = records()
    files["recipe.yaml"]["model"] = "model"
    run = write_run(tmp_path / os.fsdecode(b"run-\xff"), files)
    path = run / "evaluation" / "dense.json"
    path.write_text(path.read_text().replace("dense says 1", "dense says \\ud800"))
    text = write_report(run).read_text(encoding="utf-8")
    assert "<h1>run-?</h1>" in text
    assert "dense says ?" in text
