"""Several tasks are compared one by one; notes report the other fields of the records."""

from pathlib import Path

import pytest

from shears import compare
from shears.errors import InputError
from shears.evaluation.statistics import mcnemar
from tests.evaluation.measured import ONE, OTHER, THIRD, figures_file, records, run_folder


def _two_tasks(folder: Path, name: str, one: list[bool], other: list[bool]) -> str:
    """A file of lm-eval's tasks hellaswag and arc_easy, whose documents have the same ids."""
    return figures_file(folder, name, [*records(one, "hellaswag"), *records(other, "arc_easy")])


@pytest.mark.parametrize("named", [False, True])
def test_files_of_several_tasks_are_compared_task_by_task(named: bool, tmp_path: Path) -> None:
    files = [_two_tasks(tmp_path, "m1.json", ONE[:5], OTHER[:4]), _two_tasks(tmp_path, "m2.json", OTHER[:5], THIRD[:4])]
    names = ("a", "b") if named else ("m1", "m2")
    data = compare([f"{name}={file}" for name, file in zip(names, files, strict=True)] if named else files)
    assert [(each["task"], each["n"]) for each in data["tasks"]] == [("hellaswag", 5), ("arc_easy", 4)]
    assert all(tuple(arm["name"] for arm in each["arms"]) == names for each in data["tasks"])
    found = [difference for each in data["tasks"] for difference in each["differences"]]
    for difference, (one, other) in zip(found, ((OTHER[:5], ONE[:5]), (THIRD[:4], OTHER[:4])), strict=True):
        test = mcnemar(one, other)
        assert (difference["won"], difference["lost"], difference["p"]) == (test.won, test.lost, test.p_mid)
    assert min(each["p_holm"] for each in found) == min(1.0, 2 * min(each["p"] for each in found))  # of both tables
    page = tmp_path / "c.html"
    compare(files, output=page)
    assert "2 arms on 5 examples of hellaswag and 4 examples of arc_easy" in page.read_text()
    assert page.read_text().count("<svg") == 4


def test_only_tasks_that_all_arms_have_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both, one = _two_tasks(tmp_path, "m1.json", ONE, OTHER), figures_file(tmp_path, "m2.json", records(ONE, "arc_easy"))
    data = compare([both, one])
    assert (data["task"], data["n"]) == ("arc_easy", 8)
    assert "tasks that some arms lack are left out: hellaswag" in caplog.text
    with pytest.raises(InputError, match="a task in common: m1 has hellaswag, arc_easy; x has a task without a name"):
        compare([both, f"x={figures_file(tmp_path, 'm3.json', records(ONE))}"])


def test_models_of_a_run_are_compared_task_by_task(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", dense=ONE, sparse=OTHER)
    for name, bits in (("dense", ONE), ("sparse", OTHER)):
        _two_tasks(run / "evaluation", f"{name}.json", bits, bits[:3])
    assert [each["n"] for each in compare([str(run)])["tasks"]] == [8, 3]


def test_notes_report_other_readings_contamination_and_prompts(tmp_path: Path) -> None:
    one, other = records(ONE), records(OTHER)
    for number, (record, trained) in enumerate(zip(one, other, strict=True)):
        record |= {"prompt": f"Question: {number}", "correct_strict": False}
        trained |= {"prompt": f"### {number}", "correct_strict": number < 2, "seen_in_training": number < 4}
    data = compare([f"a={figures_file(tmp_path, 'a.json', one)}", f"b={figures_file(tmp_path, 'b.json', other[::-1])}"])
    assert data["notes"] == [
        "Accuracy strict: a 0.0%, b 25.0%.",
        "Of the 8 questions, some are in training data: 4 in that of b. Accuracy on the other 4: a 75.0%, b 50.0%.",
        "Asked in other prompts than a: b. This changes the figures too.",
    ]
    page = tmp_path / "c.html"
    compare([f"a={tmp_path / 'a.json'}", f"b={tmp_path / 'b.json'}"], output=page)
    assert all(note in page.read_text() for note in data["notes"])
    for record in other:
        record["seen_in_training"] = True
    data = compare([f"a={figures_file(tmp_path, 'a.json', one)}", f"b={figures_file(tmp_path, 'b.json', other)}"])
    assert data["notes"][1].endswith("8 in that of b; no question is unseen.")
    assert not compare([figures_file(tmp_path, name, records(ONE)) for name in ("c.json", "d.json")])["notes"]
