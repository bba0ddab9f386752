"""The section Search: the front, the history and the gain."""

from pathlib import Path
from typing import Any

from tests.report.made import RANKS, Reader, page_of, records


def test_the_gain_on_test_data_is_shown_with_its_interval(tmp_path: Path) -> None:
    files = records()
    test: dict[str, Any] = {"n": 50, "heuristic": 0.5, "chosen": 0.48, "difference": -0.02, "ci95": [-0.05, 0.01]}
    files["search/result.json"]["gain"] = {"figure": "loss", "test": test, "notes": ["inside the noise"]}
    text = Reader(page_of(tmp_path, files)).text
    assert "Loss on 50 test examples: chosen 0.48, heuristic 0.5 (difference -0.02, 95 % interval" in text
    assert "95 % interval -0.05 to +0.01). Note: inside the noise." in text
    test["ci95"] = None  # of one example
    text = Reader(page_of(tmp_path, files)).text
    assert "chosen 0.48, heuristic 0.5 (difference -0.02, no interval). Note: inside the noise." in text


def test_estimates_of_an_earlier_search_are_left_out(tmp_path: Path) -> None:
    files = records()
    estimate = {"ranks": RANKS, "metrics": {"loss": 0.31, "parameters": 20, "examples": 1}}
    files["search/result.json"]["evaluations"].insert(1, estimate)
    reader = Reader(page_of(tmp_path, files))
    text = reader.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "4 configurations measured, 2 of them on the front. 1 more were not measured in full." in text
    assert "0.5 of the first one measured, 5 tried" in text
    assert "evaluationlossbest so far10.50.530.450.4540.40.4" in text
    assert text.count("Large and ringed: the chosen configuration. On the line: the Pareto front") == 1
    circles = [mark["class"] for mark in reader.named("circle")]
    assert (circles.count("chosen"), circles.count("front")) == (1, 1)
    (*_, front) = (str(line["points"]).split() for line in reader.named("polyline") if line["class"] == "pale")
    assert len(front) == 3  # two configurations and the corner between them


def test_configurations_that_exceed_a_bound_are_counted_and_not_drawn(tmp_path: Path) -> None:
    files = records()
    result = files["search/result.json"]
    result["constraints"] = ["parameters<=36"]
    for number in (0, 3):
        del result["evaluations"][number]["metrics"]["loss"]
    page = page_of(tmp_path, files)
    text = Reader(page).text
    assert (
        "2 configurations measured, 2 of them on the front. 2 more exceed parameters<=36 and were not measured." in text
    )
    assert "0.45 of the first one measured, 4 tried" in text
    copied = {each["data-copy"] for each in Reader(page).named("g") if each.get("data-copy")}
    assert {str(words).rsplit(":", 1)[1] for words in copied} == {"2", "3"}  # their places in result.json
    for number in (1, 2):
        del result["evaluations"][number]["metrics"]["loss"]
    assert "0 configurations measured" in Reader(page_of(tmp_path / "none", files)).text
