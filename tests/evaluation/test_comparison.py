"""Comparison of runs: on the same examples in any order, refused on others, seeds pooled."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears import compare
from shears.errors import InputError
from shears.evaluation.comparison import Measurement, compare_arms, lead, paired, read_arms
from shears.evaluation.statistics import difference_p, mcnemar, paired_difference, wilson_interval

ONE = [True, True, False, True, True, False, True, True]
OTHER = [True, False, False, False, True, False, False, True]
THIRD = [False, False, False, True, False, False, False, True]


def records(bits: list[bool], task: str | None = None) -> list[dict[str, Any]]:
    more = {} if task is None else {"task": task}
    return [{"index": n, "id": f"q{n}", "correct": bit, **more} for n, bit in enumerate(bits)]


def figures_file(folder: Path, name: str, records: list[dict[str, Any]], task: str = "number") -> str:
    content = {"task": task, "metric": "accuracy", "records": records}
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def run_folder(folder: Path, **models: list[bool]) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    for name, bits in models.items():
        figures_file(folder / "evaluation", f"{name}.json", records(bits))
    (folder / "evaluation.json").write_text(json.dumps({"models": [{"name": name} for name in models]}))
    return folder


def test_two_runs_are_compared_pair_by_pair_whatever_their_order() -> None:
    shuffled = records(OTHER)[::-1]
    found = compare_arms({"one": [Measurement("a", records(ONE))], "other": [Measurement("b", shuffled)]})
    (difference,) = found["differences"]
    assert (difference["name"], difference["against"]) == ("other", "one")
    interval = paired_difference([OTHER], [ONE])
    assert (difference["value"], *difference["ci95"]) == pytest.approx(tuple(interval))
    test = mcnemar(OTHER, ONE)
    assert (difference["won"], difference["lost"], difference["p"]) == (test.won, test.lost, test.p_mid)
    assert difference["p_holm"] == difference["p"]
    assert found["arms"][0]["ci95"] == pytest.approx(list(wilson_interval(6, 8)))
    assert found["n"] == 8


def test_several_differences_are_corrected_and_the_baseline_can_be_named() -> None:
    arms = {name: [Measurement(name, records(bits))] for name, bits in (("a", ONE), ("b", OTHER), ("c", THIRD))}
    found = compare_arms(arms, against="b")
    assert [(each["name"], each["against"]) for each in found["differences"]] == [("a", "b"), ("c", "b")]
    ps = sorted((each["p"], each["p_holm"]) for each in found["differences"])
    assert ps[0][1] == min(1.0, 2 * ps[0][0])
    with pytest.raises(InputError, match="against must be one of the arms \\(a, b, c\\), got 'd'"):
        compare_arms(arms, against="d")


def test_seeds_are_pooled_and_tested_as_drawn_like_examples(tmp_path: Path) -> None:
    files = [figures_file(tmp_path, f"{n}.json", records(bits)) for n, bits in enumerate((ONE, OTHER, THIRD, OTHER))]
    found = compare([f"x={files[0]},{files[1]}", f"y={files[2]},{files[3]}"])
    assert [(arm["name"], arm["runs"]) for arm in found["arms"]] == [("x", 2), ("y", 2)]
    (difference,) = found["differences"]
    assert difference["p"] == difference_p([THIRD, OTHER], [ONE, OTHER])
    assert "won" not in difference
    assert found["arms"][0]["spread"] == pytest.approx(0.375 / 2**0.5)


def test_a_run_folder_gives_an_arm_per_model_and_runs_are_pooled_by_model(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "a", dense=ONE, sparse=OTHER), run_folder(tmp_path / "b", dense=ONE, sparse=THIRD)
    assert list(read_arms([str(one)])) == ["dense", "sparse"]
    assert list(read_arms([str(one), str(two)])) == [f"{run}: {name}" for run in (one, two) for name in models()]
    arms = read_arms([f"runs={one},{two}"])
    assert {name: len(each) for name, each in arms.items()} == {"runs: dense": 2, "runs: sparse": 2}


def models() -> tuple[str, str]:
    return "dense", "sparse"


def test_files_of_several_tasks_are_compared_task_by_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Documents of different tasks may have the same ids; Holm's correction is over all tables."""
    files = [
        figures_file(tmp_path, "m1.json", [*records(ONE[:5], "a"), *records(OTHER[:4], "b")]),
        figures_file(tmp_path, "m2.json", [*records(OTHER[:5], "a"), *records(THIRD[:4], "b")]),
    ]
    data = compare(files)
    assert [(each["task"], each["n"]) for each in data["tasks"]] == [("a", 5), ("b", 4)]
    found = [difference for each in data["tasks"] for difference in each["differences"]]
    for difference, (one, other) in zip(found, ((OTHER[:5], ONE[:5]), (THIRD[:4], OTHER[:4])), strict=True):
        test = mcnemar(one, other)
        assert (difference["won"], difference["lost"], difference["p"]) == (test.won, test.lost, test.p_mid)
    assert min(each["p_holm"] for each in found) == min(1.0, 2 * min(each["p"] for each in found))
    alone = compare([files[0], figures_file(tmp_path, "m3.json", records(OTHER[:4], "b"))])
    assert (alone["task"], alone["n"]) == ("b", 4)
    assert "tasks that some arms lack are left out: a" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task": "t", "config": {}, "records": [{"window": 0, "nll": 2.0}]}', "right and wrong answers"),
        ('{"a": 1}', "bad.json cannot be read: it lacks 'records'"),
        ("{", "bad.json"),
        ('{"task": "t", "config": {}, "records": 5}', "bad.json cannot be read"),
        ('{"models": [{"x": 1}]}', "bad.json cannot be read: it lacks 'name'"),
    ],
)
def test_files_without_measurements_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=message):
        compare([f"x={tmp_path / 'bad.json'}", f"y={tmp_path / 'bad.json'}"])


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    file, short = (figures_file(tmp_path, f"{name}.json", records(ONE[:n])) for name, n in (("a", 8), ("b", 5)))
    other = figures_file(tmp_path, "c.json", records(ONE, "piqa"))
    for runs, message in (
        ([file], "needs at least two arms, got .*a.json"),
        ([file, str(tmp_path / "nowhere")], "nowhere"),
        ([f"x={file},{file}"], f"given once, x has {file} twice"),
        ([file, short], "a.json has 8, .*b.json has 5, and 5 are in both"),
        ([file, other], "must have a task in common"),
    ):
        with pytest.raises(InputError, match=message):
            compare(runs)


def test_a_comparison_is_written_as_data(tmp_path: Path) -> None:
    files = [figures_file(tmp_path, "a.json", records(ONE)), figures_file(tmp_path, "b.json", records(OTHER))]
    data = compare(files, output=tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == data


def test_an_output_that_is_one_of_the_inputs_is_refused(tmp_path: Path) -> None:
    file, run = Path(figures_file(tmp_path, "a.json", records(ONE))), run_folder(tmp_path / "run", sparse=OTHER)
    (tmp_path / "link.json").symlink_to(file)
    for output in (file, tmp_path / "link.json", run / "evaluation.json", run / "evaluation" / "sparse.json"):
        before = output.read_bytes()
        with pytest.raises(InputError, match="must not be one of the compared files"):
            compare([f"a={file}", str(run)], output=output)
        assert output.read_bytes() == before


def test_notes_tell_what_else_differs(tmp_path: Path) -> None:
    one, other = records(ONE), records(OTHER)
    for number, (record, trained) in enumerate(zip(one, other, strict=True)):
        record |= {"prompt": f"Question: {number}", "answer": 1}
        trained |= {"prompt": f"### {number}", "answer": number}
        trained["seen_in_training"] = number < 4
    files = [f"a={figures_file(tmp_path, 'a.json', one)}", f"b={figures_file(tmp_path, 'b.json', other[::-1])}"]
    assert compare(files)["notes"] == [
        "These arms got other prompts than a: b. This changes the accuracy too.",
        "These arms were compared with other right answers than a: b. This changes the accuracy too.",
        "4 of the 8 questions also occur in the training data of an arm.",
    ]
    ruled = figures_file(tmp_path, "b.json", records(OTHER), task="boolq")
    assert compare([f"a={figures_file(tmp_path, 'c.json', records(ONE))}", f"b={ruled}"])["notes"] == [
        "These arms were judged by another rule than a (number): b (boolq). This changes the accuracy too."
    ]


def test_a_run_leads_with_plain_lora_on_the_dense_model_else_with_another_baseline_else_with_the_dense_model() -> None:
    bits = {"dense": THIRD, "sparse": THIRD, "sparse-lora": OTHER, "dense-lora": ONE, "sparse + sub-adapter": OTHER}

    def led(*names: str, only_run_trained: bool = True) -> Any:
        rows = [{"name": name, "metric": "accuracy", "value": sum(bits[name]) / 8} for name in names]
        figures = {name: {"records": records(bits[name])} for name in names}
        return lead(rows, figures, only_run_trained=only_run_trained)

    found = led(*bits)
    assert (found["name"], found["against"], found["untrained"]) == ("sparse + sub-adapter", "dense-lora", False)
    assert found["values"] == [3 / 8, 6 / 8]
    low, high = found["difference"]["ci95"]
    assert (low, high) == pytest.approx(paired_difference([OTHER], [ONE])[1:])
    assert {name: found["difference"][name] for name in ("n", "value", "won", "lost")} == {
        "n": 8, "value": -3 / 8, "won": 0, "lost": 3
    }  # fmt: skip
    assert led("dense", "sparse", "sparse-lora", "sparse + sub-adapter")["against"] == "sparse-lora"
    alone = ("dense", "sparse", "sparse + sub-adapter")
    assert (led(*alone)["against"], led(*alone)["untrained"]) == ("dense", True)
    assert not led(*alone, only_run_trained=False)["untrained"]
    assert led("dense") is None


def test_differences_are_paired_by_question_and_only_over_the_same_ones() -> None:
    ones, others = records(ONE), records(OTHER)
    assert paired(ones, others[::-1]) == paired(ones, others)
    several = [records(ONE, "a") + records(OTHER, "b"), records(OTHER, "a") + records(OTHER, "b")]
    over_all = paired(*several)
    assert over_all is not None
    assert (over_all["n"], over_all["won"], over_all["lost"]) == (16, 3, 0)
    assert paired(ones, others[:-1]) is None
    assert paired([{"window": 0, "nll": 2.0}], [{"window": 0, "nll": 1.0}]) is None
    assert paired([], []) is None
