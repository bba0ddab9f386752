"""Comparison of runs: on the same examples in any order, refused on others, seeds pooled."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears import compare
from shears.errors import InputError
from shears.evaluation.arms import Measurement, read_arms
from shears.evaluation.comparison import compare_arms, lead, paired
from shears.evaluation.statistics import bootstrap_difference, mcnemar, paired_difference, wilson_interval
from tests.evaluation.measured import ONE, OTHER, THIRD, figures_file, records, run_folder


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


def test_seeds_are_pooled_and_tested_by_resampling_examples(tmp_path: Path) -> None:
    files = [figures_file(tmp_path, f"{n}.json", records(bits)) for n, bits in enumerate((ONE, OTHER, THIRD, OTHER))]
    found = compare([f"x={files[0]},{files[1]}", f"y={files[2]},{files[3]}"])
    assert [(arm["name"], arm["runs"]) for arm in found["arms"]] == [("x", 2), ("y", 2)]
    (difference,) = found["differences"]
    assert difference["p"] == bootstrap_difference([THIRD, OTHER], [ONE, OTHER]).p
    assert "won" not in difference
    assert found["arms"][0]["spread"] == pytest.approx(0.375 / 2**0.5)


def test_a_run_folder_gives_an_arm_per_model_and_runs_are_pooled_by_model(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "a", dense=ONE, sparse=OTHER), run_folder(tmp_path / "b", dense=ONE, sparse=THIRD)
    assert list(read_arms([str(one)])) == ["dense", "sparse"]
    assert list(read_arms([str(one), str(two / "evaluation.json")])) == [
        "a: dense", "a: sparse", "evaluation: dense", "evaluation: sparse",
    ]  # fmt: skip
    arms = read_arms([f"runs={one},{two}"])
    assert {name: len(each) for name, each in arms.items()} == {"runs: dense": 2, "runs: sparse": 2}


def test_sources_without_a_name_are_not_pooled(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    one, two = (figures_file(tmp_path / name, "out.json", records(bits)) for name, bits in (("a", ONE), ("b", OTHER)))
    other = figures_file(tmp_path / "c", "other.json", records(THIRD))
    assert {name: len(each) for name, each in read_arms([one, two, other]).items()} == {
        "a/out": 1,
        "b/out": 1,
        "other": 1,
    }
    assert list(read_arms([f"out={one}", two])) == ["out", "b/out"]
    runs = [run_folder(tmp_path / name, sparse=ONE) / "evaluation.json" for name in ("x", "y")]
    assert list(read_arms(list(map(str, runs)))) == ["x/evaluation: sparse", "y/evaluation: sparse"]


def test_a_source_given_twice_in_other_spellings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = figures_file(tmp_path, "x.json", records(ONE))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.json").symlink_to(file)
    for runs in (["x=x.json", f"x={file}"], [f"x=x.json,{file}"], ["x=link.json,x.json"], ["x.json", file]):
        with pytest.raises(InputError, match="given once, x has one twice"):
            read_arms(runs)
    with pytest.raises(InputError, match="must have a file or folder behind its name, got 'x='"):
        read_arms(["x=", "x.json"])


def test_tasks_of_one_file_are_arms_of_their_own(tmp_path: Path) -> None:
    file = figures_file(tmp_path, "h.json", [*records(ONE, "a"), *records(OTHER, "b")])
    assert list(read_arms([file])) == ["a", "b"]
    assert list(read_arms([f"x={file}"])) == ["x: a", "x: b"]
    alone = figures_file(tmp_path, "i.json", records(ONE, "a"))
    assert {name: [each.task for each in of] for name, of in read_arms([file, alone]).items()} == {
        "h": ["a", "b"],
        "i": ["a"],
    }


def test_repeated_examples_are_matched_by_their_order() -> None:
    records = [{"id": "q", "correct": bit} for bit in (True, False, True)]
    assert list(Measurement("a", records).by_example().values()) == [True, False, True]


def test_older_records_are_matched_by_their_prompt() -> None:
    old = [{"prompt": f"Question: {n} pens?\nAnswer:", "correct": bit} for n, bit in enumerate(ONE)]
    new = [{"prompt": f"### Instruction:\n{n} pens", "id": each, "correct": True} for n, each in enumerate("abcdefgh")]
    assert compare_arms({"a": [Measurement("a", old)], "b": [Measurement("b", old[::-1])]})["n"] == 8
    with pytest.raises(InputError, match="0 are in both"):
        compare_arms({"a": [Measurement("a", old)], "b": [Measurement("b", new)]})


def test_other_examples_are_refused_with_counts(tmp_path: Path) -> None:
    files = [figures_file(tmp_path, "a.json", records(ONE)), figures_file(tmp_path, "b.json", records(ONE[:5]))]
    with pytest.raises(InputError, match=r"a.json has 8, .*b.json has 5, 5 are in both"):
        compare(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"records": [{"window": 0, "nll": 2.0}]}',
            "right and wrong answers; those of a perplexity cannot",
        ),
        ('{"records": []}', "must hold records of examples"),
        ('{"a": 1}', "must be the evaluation.json of a run or a file that evaluate"),
        ("[1]", "must be the evaluation.json of a run or a file that evaluate"),
        ("{", "cannot be read"),
        ('{"records": 5}', "the records of .* must be a list of objects, got 5"),
        ('{"records": [5]}', "the records of .* must be a list of objects"),
        ('{"records": null}', "the records of .* must be a list of objects, got None"),
        ('{"models": 5}', "the models of .* must be a list of objects with a name, got 5"),
        ('{"models": [{"x": 1}]}', "the models of .* must be a list of objects with a name"),
    ],
)
def test_files_without_measurements_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=message):
        compare([f"x={tmp_path / 'bad.json'}", f"y={tmp_path / 'bad.json'}"])


def test_a_single_arm_a_missing_one_and_a_repeated_one_are_errors(tmp_path: Path) -> None:
    file = figures_file(tmp_path, "a.json", records(ONE))
    for runs, message in (
        ([file], "needs at least two arms, got a"),
        ([file, str(tmp_path / "nowhere")], "must be a folder with evaluation.json or a figures file, got .*nowhere"),
        ([f"x={file},{file}"], "given once, x has one twice"),
    ):
        with pytest.raises(InputError, match=message):
            compare(runs)


@pytest.mark.parametrize("name", ["c.json", "c.html"])
def test_a_comparison_is_written_as_data_or_as_a_page(name: str, tmp_path: Path) -> None:
    files = [figures_file(tmp_path, "a<b.json", records(ONE)), figures_file(tmp_path, "b.json", records(OTHER))]
    data = compare(files, output=tmp_path / name)
    text = (tmp_path / name).read_text()
    if name.endswith("json"):
        assert json.loads(text) == data
        return
    assert text.count("<svg") == 2
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is loaded from elsewhere
    assert "75.0" in text


def test_an_output_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for output in (tmp_path / "c.png", tmp_path / "nowhere" / "c.json"):
        with pytest.raises(InputError, match="must be a .json or .html file in an existing folder"):
            compare(["nowhere"], output=output)


def test_an_output_that_is_one_of_the_inputs_is_refused(tmp_path: Path) -> None:
    file, run = Path(figures_file(tmp_path, "a.json", records(ONE))), run_folder(tmp_path / "run", sparse=OTHER)
    (tmp_path / "link.json").symlink_to(file)
    for output in (file, tmp_path / "link.json", run / "evaluation.json", run / "evaluation" / "sparse.json"):
        before = output.read_bytes()
        with pytest.raises(InputError, match="must not be one of the compared files"):
            compare([f"a={file}", str(run)], output=output)
        assert output.read_bytes() == before


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_bounds_is_an_error(seed: int, tmp_path: Path) -> None:
    files = [figures_file(tmp_path, name, records(ONE)) for name in ("a.json", "b.json")]
    with pytest.raises(InputError, match=f"the seed must be from 0 to 4294967295, got {seed}"):
        compare(files, seed=seed)


def test_notes_name_other_rules_and_other_right_answers(tmp_path: Path) -> None:
    """Examples are known by their questions alone."""
    answered = [{**record, "answer": 1.0} for record in records(ONE)]
    others = [{**record, "answer": 2.0} for record in answered[:3]] + answered[3:]
    files = [figures_file(tmp_path, f"{name}.json", each) for name, each in (("a", answered), ("b", others))]
    assert _notes([files[0], files[0].replace("a.json", "b.json")]) == [
        "3 of the 8 questions have another right answer in b than in a."
    ]
    content = json.loads(Path(files[1]).read_text()) | {"task": "boolq", "config": {"protocol": "choices"}}
    Path(files[1]).write_text(json.dumps(content))
    words = "Judged by another rule than a (number): b (boolq by choices). This changes the figures too."
    assert _notes(files) == [words]
    assert _notes([files[0], f"pooled={files[0]},{files[1]}"]) == [words.replace(": b", ": pooled")]


def test_a_note_counts_the_answers_that_were_cut_over_all_runs_of_an_arm(tmp_path: Path) -> None:
    cut = [{**record, "cut": number < 3} for number, record in enumerate(records(ONE))]
    whole = [{**record, "cut": False} for record in records(OTHER)]
    a, b, unknown = (
        figures_file(tmp_path, f"{name}.json", each) for name, each in (("a", cut), ("b", whole), ("c", records(ONE)))
    )
    assert _notes([f"two={a},{b}", b, unknown]) == ["Answers cut at the longest length: two 3 of 16, b 0 of 8."]


def _notes(runs: list[str]) -> list[str]:
    found: list[str] = compare(runs)["notes"]
    return found


def test_a_path_of_a_named_arm_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    for name in ("one.json", "two.json", "lr=0.1/one.json", "lr=0.1/two.json"):
        figures_file(tmp_path, name, records(ONE))
    words = ["nls=lr=0.1/one.json,lr=0.1/two.json", "lr=0.1=one.json", "plain=two.json", "lr=0.1/one.json"]
    assert {name: [each.source for each in of] for name, of in read_arms(words).items()} == {
        "nls": ["lr=0.1/one.json", "lr=0.1/two.json"], "lr=0.1": ["one.json"], "plain": ["two.json"],
        "one": ["lr=0.1/one.json"],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"got lr=0\.1/none\.json|got 0\.1/none\.json"):
        read_arms(["nls=lr=0.1/none.json"])


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(InputError, match=r"must be a \.json or \.html file"):
        compare(["a.json", "b.json"], output=tmp_path / "page.html")


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
