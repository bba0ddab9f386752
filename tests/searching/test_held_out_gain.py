"""The gain of a search: on test examples it did not see, with intervals that hold what they say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shears.cli.tables import print_search
from shears.errors import InputError
from shears.evaluation.contamination import check_apart
from shears.records.artifacts import SEARCH_SPACE, SUB_ADAPTER, read_json, write_json
from shears.records.folders import partial_folder
from shears.searching.held_out_gain import Gain, gain_report, ratio_difference
from shears.searching.stage import search
from tests.searching.measure.test_evaluators import config, make
from tests.searching.test_stage import SETTINGS, rows


def test_the_interval_of_a_ratio_holds_the_truth_in_95_of_100_samples() -> None:
    generator, hits, truth = np.random.default_rng(0), 0, 0.03
    for _ in range(2000):
        tokens = generator.integers(3, 20, size=200).astype(float)
        differences = tokens * (truth + 0.2 * generator.normal(size=200))
        value, low, high = ratio_difference(differences, tokens)
        hits += low <= truth <= high
        assert low < value < high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_with_equal_weights_it_is_the_interval_of_a_mean() -> None:
    differences = np.random.default_rng(1).normal(size=50)
    value, low, high = ratio_difference(differences, np.ones(50))
    half = 1.959963984540054 * differences.std(ddof=1) / 50**0.5
    assert (value, low, high) == pytest.approx(
        (differences.mean(), differences.mean() - half, differences.mean() + half)
    )
    assert ratio_difference(np.ones(1), np.ones(1)) == (1.0, -np.inf, np.inf)


def report(chosen: int, heuristic: int, quality: str = "loss") -> dict[str, Any]:
    validation, test = make(quality)[0], make(quality)[0]
    return gain_report(validation, test, config(chosen), config(heuristic), 50)


def test_a_clear_gain_needs_no_note_and_what_is_inside_the_noise_has_one() -> None:
    clear = report(2, 5)
    assert clear["notes"] == []
    assert clear["test"]["difference"] == pytest.approx(clear["test"]["chosen"] - clear["test"]["heuristic"])
    assert clear["test"]["ci95"][1] < 0
    assert report(5, 2)["notes"] == [
        "the chosen configuration is worse than the heuristic on the test examples; take the heuristic"
    ]
    assert report(5, 5)["notes"] == ["the heuristic is the chosen configuration: the search found nothing better"]
    evaluator, gauge = make()
    gauge.shifts[6] = -1.0
    noisy = gain_report(evaluator, evaluator, config(6), config(5), 50)
    assert "winner's curse" in noisy["notes"][0]
    assert "do not tell" in noisy["notes"][1]
    assert Gain(3, 0.5, 0.5, 0.0, -0.1, 0.1).is_noise


def test_one_example_has_no_interval_and_its_record_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = Gain(1, 0.5, 0.4, *ratio_difference(np.array([-0.1]), np.ones(1)))
    assert alone.is_noise
    assert alone.as_data()["ci95"] is None
    entry = {"ranks": {}, "metrics": {"loss": 0.4, "parameters": 5}}
    gain = {"figure": "loss", "validation": alone.as_data(), "test": alone.as_data(), "notes": []}
    result = {"evaluations": [entry], "chosen": entry, "pareto": [entry], "objectives": ["loss"], "gain": gain}
    write_json(tmp_path / "result.json", result)
    print_search(tmp_path / "result.json")
    assert "difference -0.1 (interval unknown)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("settings", [{}, {"task": "number"}, {"objective": "accuracy", "task": "number"}])
def test_the_result_holds_the_test_figures_and_a_resumed_search_the_same(
    settings: dict[str, Any], super_adapter: Path, validation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SETTINGS, "max_evaluations": 3, "max_new_tokens": 2, **settings}
    test = rows(tmp_path / "test.jsonl", 2)
    folder = search(super_adapter, tmp_path / "out", data=validation, test=test, **given)
    result = read_json(folder / "result.json")
    gain = result["gain"]
    assert gain["figure"] == ("accuracy" if "task" in settings else "loss")
    assert gain["test"]["n"] == gain["validation"]["n"] == 8
    if gain["figure"] in result["chosen"]["metrics"]:
        assert gain["validation"]["chosen"] == result["chosen"]["metrics"][gain["figure"]]
        assert gain["validation"]["heuristic"] == result["evaluations"][0]["metrics"][gain["figure"]]
    alone = search(super_adapter, tmp_path / "alone", data=test, **{**given, "strategy": "heuristic"})
    if not settings:
        assert read_json(alone / "result.json")["chosen"]["metrics"]["loss"] == gain["test"]["heuristic"]
    without = search(super_adapter, tmp_path / "without", data=validation, **given)
    assert read_json(without / "result.json")["evaluations"] == result["evaluations"]
    print_search(folder / "result.json")
    assert "on 8 test examples: chosen" in capsys.readouterr().out


def test_test_examples_that_cannot_be_measured_are_refused_before_the_search(
    super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"prompt": "1+1="}) + "\n")
    for test, message in ((str(tmp_path / "nowhere.jsonl"), "a file that exists"), (str(bad), "have a completion")):
        with pytest.raises(InputError, match=message):
            search(super_adapter, tmp_path / "out", data=validation, test=test, **SETTINGS)
        assert not partial_folder(tmp_path / "out").exists(), "nothing was evaluated"


def test_test_examples_that_stood_in_training_are_told(
    super_adapter: Path, validation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_on = rows(tmp_path / "again.jsonl", 0)
    settings = {**SETTINGS, "data": validation, "strategy": "heuristic"}
    search(super_adapter, tmp_path / "out", test=trained_on, **settings)
    assert f"8 of 8 examples of {trained_on} stand in" in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_the_training_data_are_read_once_for_validation_and_test(
    there: bool, super_adapter: Path, validation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(super_adapter, tmp_path / "adapter")
    record = read_json(folder / SEARCH_SPACE)
    data = rows(tmp_path / "trained.jsonl", 0 if there else 3)
    write_json(folder / SEARCH_SPACE, {**record, "config": {**record["config"], "data": data}})
    caplog.set_level("INFO")
    settings = {**SETTINGS, "data": validation, "strategy": "heuristic", "test": rows(tmp_path / "test.jsonl", 2)}
    search(folder, tmp_path / "out", model=str(super_adapter.parent / "base"), **settings)
    assert caplog.text.count(f"rows from {data}") == there
    assert caplog.text.count(f"{data} is not what was trained on") == (not there)


def test_the_test_examples_must_not_be_those_that_the_search_sees(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search.test must be other examples than data"):
        search("nowhere", tmp_path, data="some.jsonl", test="some.jsonl")


def test_a_test_split_under_another_name_is_known_by_its_questions(
    super_adapter: Path, validation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Path(validation).read_text().splitlines(keepends=True)
    copy = tmp_path / "renamed.jsonl"
    copy.write_text("".join(reversed(lines)))
    asked = {**SETTINGS, "data": validation, "strategy": "heuristic"}
    with pytest.raises(InputError, match=r"all 8 rows of .*renamed.jsonl stand in .*validation.jsonl"):
        search(super_adapter, tmp_path / "out", test=str(copy), **asked)
    assert not (tmp_path / "out").exists()
    fresh = [json.dumps({"prompt": f"what is {number}?", "completion": " 5"}) + "\n" for number in range(200, 208)]
    copy.write_text("".join([*lines[:1], *fresh]))
    search(super_adapter, tmp_path / "some", test=str(copy), **asked)
    assert "1 of 9 test questions of" in caplog.text
    search(super_adapter, tmp_path / "limited", **{**asked, "data": str(copy), "test": validation, "limit": 9})
    assert "1 of 8 test questions of" in caplog.text


def test_a_search_on_training_examples_says_how_many_whatever_the_file_is_called(
    super_adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_on = rows(tmp_path / "again.jsonl", 0)
    search(super_adapter, tmp_path / "out", data=trained_on, **{**SETTINGS, "strategy": "heuristic"})
    assert "8 of 8 examples of" in caplog.text
    assert "which the super-adapter was trained on" in caplog.text


def test_a_search_on_what_its_base_was_trained_on_before_is_told(
    super_adapter: Path, validation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(super_adapter.parent / "base", tmp_path / "merged")
    write_json(base / SUB_ADAPTER, {"data": validation})
    search(super_adapter, tmp_path / "out", model=str(base), data=validation, **{**SETTINGS, "strategy": "heuristic"})
    assert f"8 of 8 examples of {validation} stand in {validation}, which" in caplog.text


def test_the_same_question_with_another_answer_is_told_and_not_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A chat's last turn, or one prompt for all rows, may be the same where nothing else is."""
    files = [tmp_path / name for name in ("validation.jsonl", "test.jsonl")]
    for number, file in enumerate(files):
        rows = [{"prompt": "Go on.", "completion": f"{number}-{row}"} for row in range(3)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_apart(str(files[0]), str(files[1]))
    assert "3 of 3 test questions of" in caplog.text


def test_the_test_examples_must_be_others_under_any_name(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    copy = shutil.copy(validation, tmp_path / "test.jsonl")
    with pytest.raises(InputError, match=r"search.test must be other examples than data, .*, got the same rows"):
        search(super_adapter, tmp_path / "out", data=validation, test=str(copy), limit=1)
    assert not list(tmp_path.glob("out*"))
