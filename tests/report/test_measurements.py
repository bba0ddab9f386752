"""The sections Accuracy, Ranks, Examples and Speed."""

from pathlib import Path
from typing import Any

from shears.report.words import count
from tests.report.made import MODELS, Reader, page_of, record, records


def spread(middle: float) -> dict[str, float]:
    """Return a median with a range of a tenth of it on both sides."""
    return {"median": middle, "min": 0.9 * middle, "max": 1.1 * middle}


def test_a_bench_says_how_fast_the_package_is(tmp_path: Path) -> None:
    """The faster of the two dense models in transformers counts; our own dense model is in the table only."""
    speeds = {"package (bf16, native)": 120.0, "dense, our kernels (bf16)": 100.0, "dense, transformers": 20.0,
              "dense, transformers, oneDNN off": 40.0}  # fmt: skip
    contestants = [
        {"name": name, "memory_bytes": 1e8, "decode_tokens_per_second": spread(speed),
         "prefill_tokens_per_second": spread(10 * speed), "time_to_first_token_seconds": spread(0.25)}
        for name, speed in speeds.items()
    ]  # fmt: skip
    ratios = [{"over": name, "decode": spread(120 / speed)} for name, speed in list(speeds.items())[1:]]
    bench = {"package": "runs/mine/package", "cpu": "a processor", "threads": 1, "rounds": 5, "prompt_tokens": 512,
             "new_tokens": 64, "contestants": contestants, "ratios": ratios}  # fmt: skip
    text = Reader(page_of(tmp_path, records() | {"bench.json": bench})).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "weights than the dense model, decodes 3.00x as fast as it in transformers." in text
    assert "3.00xas fast as the dense model in transformers, decoding2.70x to 3.30x over 5 rounds, 1 thread" in text
    assert "runs/mine/package on a processor, 1 thread: decoding 64 tokens after a prompt" in text
    assert "dense, transformers20 (18 to 22)100.0 MB" in text
    assert "dense, transformers200 (180 to 220)250 (225 to 275)" in text  # of reading, and the first token


def test_an_answer_without_a_text_is_shown_as_no_text(tmp_path: Path) -> None:
    files = records()
    files["evaluation/sparse.json"]["records"][2] |= {"output": " ", "prediction": None}
    assert "no text → no answer found" in page_of(tmp_path, files)


def test_rare_patterns_of_right_answers_are_counted_together(tmp_path: Path) -> None:
    """Four models have sixteen patterns; here the one of number n occurs n + 1 times."""
    files, names = records(), [*MODELS, "dense-lora"]
    files["evaluation.json"]["models"].append({**files["evaluation.json"]["models"][0], "name": "dense-lora"})
    patterns = [number for number in range(16) for _ in range(number + 1)]
    for place, name in enumerate(names):
        hits = [number >> place & 1 for number in patterns]
        path = f"evaluation/{name.replace(' + ', '_').replace('-', '_')}.json"
        files[path] = {"records": [record(index, name, hit, "Question") for index, hit in enumerate(hits)]}
    text = Reader(page_of(tmp_path, files)).text
    assert "16rightrightrightright15wrongrightrightright" in text
    assert "9wrongwrongwrongright368 other patterns" in text  # 1 + 2 + ... + 8


def curve() -> dict[str, Any]:
    """Return the record of a super-adapter at three ranks."""
    gap = {"n": 200, "value": -0.05, "ci95": [-0.1, 0.01], "won": 4, "lost": 14, "p": 0.02, "p_holm": 0.04}
    points = [
        {"rank": rank, "parameters": 1000 * rank, "value": value, "n": 200, "ci95": [value - 0.1, value + 0.1],
         "details": {}, "difference": None if rank == 32 else gap}
        for rank, value in ((32, 0.5), (16, 0.45), (8, 0.4))
    ]  # fmt: skip
    return {"task": "number", "metric": "accuracy", "value": 0.5, "n": 200, "ci95": [0.4, 0.6], "records": [],
            "curve": {"aurac": 0.4583, "aurac_ci95": [0.4, 0.52], "points": points}}  # fmt: skip


def test_the_ranks_say_how_many_answers_were_cut(tmp_path: Path) -> None:
    measured = curve()
    measured["curve"]["points"][1]["details"] = {"cut": 3.0}
    text = Reader(page_of(tmp_path, records() | {"evaluation/ranks.json": measured})).text
    assert "Answers cut at the longest length: rank 16 3 of 200." in text


def test_the_curve_is_drawn_with_its_area_and_its_table(tmp_path: Path) -> None:
    page = Reader(page_of(tmp_path, records() | {"evaluation/ranks.json": curve()}))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "(AURAC) is 45.8 % (40.0 % to 52.0 %)" in text
    assert "Accuracy over rank, from 40.0 % at the smallest rank to 50.0 % at the largest" in (
        str([each.get("aria-label") for each in page.named("svg")]).replace("\\xa0", " ")
    )
    dots = [each for each in page.named("circle") if each.get("r") == "4"]
    places = [(float(each["cx"] or 0), float(each["cy"] or 0)) for each in dots]
    assert len(places) == 3
    assert places == sorted(places, key=lambda place: (-place[0], place[1]))  # smaller to the left, worse below
    for cell in ("16", count(16_000).replace("\N{NO-BREAK SPACE}", " "), "45.0 %", "35.0 % to 55.0 %", "0.040"):
        assert cell in text


def test_a_run_without_the_curve_has_no_such_section(tmp_path: Path) -> None:
    page = Reader(page_of(tmp_path, records()))
    assert "AURAC" not in page.text
    assert "#ranks" not in {each.get("href") for each in page.named("a")}
