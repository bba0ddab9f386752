"""The benchmark of real models: cells are planned once, tuned on validation loss, resumed, and shown in tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.pictures import write_pictures
from benchmarks.real_models import run_cells
from benchmarks.real_models_cells import ARMS, Cell, Wanted, choose, pending, tuning_cell, undecided, wanted_tests
from benchmarks.real_models_data import Task, parse_task, write_training
from benchmarks.real_models_run import Setting, answers_text, checked_base, run_cell, taught_keywords, training_keywords
from benchmarks.real_models_table import print_tables
from benchmarks.report import rows_of

from shears.errors import InputError
from shears.evaluation.statistics import holm
from tests.tiny import save_tiny

GSM8K = Task("gsm8k", "gsm8k")
WANTED = Wanted(("small",), (GSM8K,), ("dense-0shot", "dense-lora", "sparse-nls"), seeds=(0, 1))
SETTING = Setting(Path("data"), Path("work"), {"small": "small"})
ROOT = Path(__file__).parents[2]
LOSSES: Mapping[tuple[float, float], float] = {(1e-4, 64): 0.9, (3e-4, 64): 0.7, (1e-3, 64): 0.8, (3e-4, 128): 0.6}


def _run(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Return the line that a cell would have, with losses of `LOSSES`."""
    if cell.kind == "tune":
        return {**cell.key, "loss": LOSSES[cell.learning_rate, cell.alpha], "seconds": {}}
    return {**cell.key, "right": "01", "seconds": {}}


def test_rates_are_tuned_first_alpha_at_the_best_rate_only_then_every_test_runs_once(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert run_cells(WANTED, SETTING, [results], _run) == []
    rows = rows_of(results)
    tuned = [(row["arm"], row["learning_rate"], row["alpha"]) for row in rows if row["kind"] == "tune"]
    assert tuned == [
        (arm, rate, alpha)
        for arm in ("dense-lora", "sparse-nls")
        for rate, alpha in ((1e-4, 64), (3e-4, 64), (1e-3, 64), (3e-4, 128))
    ]
    assert all(row["seed"] == 0 and math.isclose(row["epochs"], 1 / 3) for row in rows if row["kind"] == "tune")
    tests = [row for row in rows if row["kind"] == "test"]
    assert [(row["arm"], row["ranks"], row["seed"]) for row in tests] == [
        ("dense-0shot", "none", 0),
        *(
            (arm, ranks, seed)
            for seed in (0, 1)
            for arm, ranks in (
                ("dense-lora", "heuristic"), ("sparse-nls", "heuristic"), ("sparse-nls", "minimal"),
                ("sparse-nls", "searched"),
            )
        ),
    ]  # fmt: skip
    assert {(row["learning_rate"], row["alpha"]) for row in tests if row["arm"] != "dense-0shot"} == {(3e-4, 128)}


def test_finished_cells_of_any_file_are_skipped_and_only_the_first_file_grows(tmp_path: Path) -> None:
    other, results = tmp_path / "other.jsonl", tmp_path / "results.jsonl"
    run_cells(replace(WANTED, arms=("dense-lora",)), SETTING, [other], _run)
    before = other.read_bytes()
    run_cells(WANTED, SETTING, [results, other], _run)
    assert other.read_bytes() == before
    assert {row["arm"] for row in rows_of(results)} == {"dense-0shot", "sparse-nls"}
    assert list(pending(WANTED, rows_of(results, other))) == []
    more = list(pending(replace(WANTED, limit=100), rows_of(results, other)))
    assert {cell.limit for cell in more} == {100}  # other questions are other cells
    assert {cell.kind for cell in more} == {"test"}  # of which the tuning holds


def test_a_failed_cell_is_not_tried_twice_and_the_others_run(tmp_path: Path) -> None:
    tried = []

    def runner(cell: Cell, setting: Setting) -> dict[str, Any]:
        tried.append(cell)
        if cell.arm == "sparse-nls":
            raise MemoryError("16 GB")
        return _run(cell, setting)

    failed = run_cells(WANTED, SETTING, [tmp_path / "results.jsonl"], runner)
    assert {cell.arm for cell in failed} == {"sparse-nls"}
    assert len(tried) == len(set(tried))
    assert len(undecided(WANTED, rows_of(tmp_path / "results.jsonl"))) == 6


def test_the_lowest_validation_loss_chooses_and_a_diverged_rate_never_wins() -> None:
    cell = next(cell for cell in wanted_tests(WANTED) if cell.arm == "dense-lora")
    start = tuning_cell(cell, WANTED)

    def row(rate: float, alpha: float, loss: float) -> dict[str, Any]:
        return {**replace(start, learning_rate=rate, alpha=alpha).key, "loss": loss}

    rows = [row(1e-4, 64.0, 0.9), row(3e-4, 64.0, 0.7), row(1e-3, 64.0, math.nan)]
    waiting = choose(cell, WANTED, rows)
    assert waiting.cell is None
    assert [(each.learning_rate, each.alpha) for each in waiting.missing] == [(3e-4, 128.0)]
    made = choose(cell, WANTED, [*rows, row(3e-4, 128.0, 0.75)]).cell
    assert made is not None
    assert (made.learning_rate, made.alpha, made.kind, made.test) == (3e-4, 64.0, "test", "gsm8k")


def test_cells_that_would_be_equal_run_once() -> None:
    """One candidate needs no tuning, one sparsity can choose for all, dense arms do not depend on the sparsity."""
    one = pending(replace(WANTED, rates=(1e-3,), alphas=(128.0,), arms=("dense-lora",)), [])
    assert [(cell.kind, cell.learning_rate, cell.alpha, cell.seed) for cell in one] == [
        ("test", 1e-3, 128.0, 0), ("test", 1e-3, 128.0, 1),
    ]  # fmt: skip
    wanted = replace(WANTED, arms=("sparse-nls",), sparsities=(0.4, 0.5, 0.7), tune_at=0.5)
    assert [cell.sparsity for cell in pending(wanted, []) if cell.kind == "tune"] == [0.5] * 3  # one for each rate
    wanted = replace(WANTED, arms=("dense-0shot", "dense-lora", "sparse-0shot"), sparsities=(0.5, 0.6), seeds=(0,))
    assert [(cell.arm, cell.base, cell.sparsity) for cell in wanted_tests(wanted)] == [
        ("dense-0shot", "dense", 0.0), ("dense-lora", "dense", 0.0), ("sparse-0shot", "wanda", 0.5),
        ("sparse-0shot", "best", 0.5), ("sparse-0shot", "wanda", 0.6), ("sparse-0shot", "best", 0.6),
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write sets in LLM-Adapters' form: GSM8K of 503 training questions, one of them, the last, also in SVAMP."""
    folder = tmp_path / "data"
    rows = [{"question": f"How much is {n} plus 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(503)]
    for name in ("gsm8k", "mawps", "SVAMP", "AQuA"):
        (folder / name).mkdir(parents=True)
        tests = [{"instruction": f"{name}: how much is {n} times 2?", "input": "", "output": "", "answer": str(2 * n)}
                 for n in range(4)]  # fmt: skip
        (folder / name / "test.json").write_text(json.dumps(tests))
    seen = [{"instruction": " how much is 502 plus 1 ?", "input": "", "output": "", "answer": "503"}]
    (folder / "SVAMP" / "test.json").write_text(json.dumps(seen))
    (folder / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [{"original_text": f"Ann has {n} and gets 3 .", "equation": f"x={n}+3", "ans": n + 3} for n in range(4)]
    (folder / "mawps" / "trainset.json").write_text(json.dumps(given))
    (folder / "mawps" / "validset.json").write_text(json.dumps(given[:1]))
    return folder


def _instructions(path: Path) -> list[str]:
    return [json.loads(line)["instruction"] for line in path.read_text().splitlines()]


def test_no_training_question_stands_in_a_test_file_and_the_first_500_are_held_out(data: Path, tmp_path: Path) -> None:
    paths = write_training(data, tmp_path / "out", "gsm8k", None)
    assert sorted(_instructions(paths["train"])) == ["How much is 500 plus 1?", "How much is 501 plus 1?"]
    assert set(_instructions(paths["validation"])) == {f"How much is {n} plus 1?" for n in range(500)}


def test_sets_can_be_joined_and_fewer_examples_are_a_part_of_more(data: Path, tmp_path: Path) -> None:
    whole = write_training(data, tmp_path / "whole", "mawps+gsm8k", None)
    part = write_training(data, tmp_path / "part", "mawps+gsm8k", 3)
    assert len(_instructions(whole["train"])) == 2 + 4
    assert _instructions(part["train"]) == _instructions(whole["train"])[:3]
    rows = [json.loads(line) for line in whole["train"].read_text().splitlines()]
    assert "1+3 = 4" in [row["output"] for row in rows if row["instruction"] == "Ann has 1 and gets 3 ."]
    assert "Ann has 0 and gets 3 ." not in _instructions(whole["validation"])  # it is trained on


def test_a_task_is_trained_on_its_own_set_or_on_the_named_ones() -> None:
    assert parse_task("svamp:mawps+gsm8k") == Task("svamp", "mawps+gsm8k")
    for text in ("aqua", "svamp", "svamp:mawps"):
        assert str(parse_task(text)) == text
    assert str(parse_task("svamp:gsm8k")) == "svamp"
    with pytest.raises(InputError, match="a task must be one of gsm8k"):
        parse_task("boolq")
    with pytest.raises(InputError, match="training data must be of gsm8k, mawps, .* got 'aqua'"):
        parse_task("svamp:aqua")


def test_a_ready_base_must_be_what_it_is_called_and_a_taught_arm_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a folder of shears sparsify or heal"):
        checked_base("small:best-0.5", tmp_path, 0.5)
    (tmp_path / "sparsity.json").write_text(json.dumps({"achieved": 0.4}))
    with pytest.raises(InputError, match="must have a sparsity of 0.5, .* has 0.400"):
        checked_base("small:best-0.5", tmp_path, 0.5)
    taught, plain = (next(wanted_tests(replace(WANTED, arms=(arm,)))) for arm in ("sparse-nls-taught", "sparse-nls"))
    with pytest.raises(InputError, match="sparse-nls-taught needs --teachers small=ADAPTER"):
        taught_keywords(taught, SETTING)
    setting = replace(SETTING, teachers={"small": Path("dense-lora")})
    assert taught_keywords(taught, setting) == {"teacher": "dense-lora"}
    assert taught_keywords(plain, setting) == {}


def _line(arm: str, right: str, ranks: str = "heuristic", seed: int = 0, **fields: Any) -> dict[str, Any]:
    sparse = not arm.startswith("dense")
    cell = Cell(
        kind="test", model="small", test="gsm8k", trained="gsm8k", sparsity=0.5 if sparse else 0.0,
        base="best" if sparse else "dense", arm=arm, ranks=ranks, seed=seed, examples=8, epochs=1.0, limit=0,
        evaluations=0, max_new_tokens=256, learning_rate=1e-3, alpha=64.0,
    )  # fmt: skip
    return {**cell.key, "right": right, "adapter_parameters": 2_000_000, **fields}


UNTRAINED: Mapping[str, Any] = {"ranks": "none", "examples": 0, "epochs": 0.0, "adapter_parameters": 0}
LINES: Sequence[Mapping[str, Any]] = (
    _line("dense-0shot", "1000", **{**UNTRAINED, "trained": ""}),
    _line("dense-lora", "1110"),
    _line("dense-lora", "1100", seed=1),
    _line("sparse-lora", "1000"),
    _line("sparse-nls", "1100"),
    _line("sparse-nls", "1101", "searched", adapter_parameters=1_500_000),
)


def _table_lines(text: str) -> dict[str, list[str]]:
    """Return the cells of each line of tables by its first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row for row in rows}


def test_the_tables_pool_seeds_and_pair_differences_on_common_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    tuning = [{**_line("dense-lora", ""), "kind": "tune", "test": "", "learning_rate": rate, "loss": loss}
              for rate, loss in ((1e-4, 0.9), (1e-3, 0.8))]  # fmt: skip
    print_tables([*tuning, *LINES, {**LINES[0], "test": "aqua"}])
    text = capsys.readouterr().out
    assert "0.0001, 64: 0.9000; **0.001, 64: 0.8000**" in text
    assert text.count("aqua: 4 questions, asked in alpaca; untrained") == 1
    print_tables(LINES)
    lines = _table_lines(capsys.readouterr().out)
    assert lines["dense, LoRA 32"][1] == "5 of 4 x 2"
    assert lines["dense, LoRA 32"][2].startswith("62.5 (")
    assert lines["dense, LoRA 32"][3:] == ["", "", "", "LLaMA-7B 37.5"]
    assert lines["dense, as it came"][3].startswith("-37.5 (")  # its one run beside both seeds
    assert lines["50% (best), LoRA 32"][3].startswith("-50.0 (")  # against seed 0 alone
    assert lines["50% (best), NLS, heuristic"][6] == "LLaMA-7B 36.1, MPT-7B 33.4"
    claims = {name.removeprefix("small, gsm8k, 50% (best): "): row for name, row in lines.items() if " minus " in name}
    assert {name: row[1] for name, row in claims.items()} == {
        "NLS, heuristic, minus LoRA 32": "+25.0", "NLS, searched, minus heuristic": "+25.0",
    }  # fmt: skip
    assert [float(row[4]) for row in claims.values()] == holm([float(row[3]) for row in claims.values()])


def test_the_first_line_is_the_model_as_it_came_in_its_best_form_and_the_title_says_what_stays_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    came = {**UNTRAINED, "trained": ""}
    print_tables(
        [_line("dense-lora", "1000", template="chat", cut=3), _line("dense-0shot", "0000", **came),
         _line("dense-0shot", "1100", template="question", cut=1, **came),
         _line("dense-0shot", "1000", template="chat", **came), _line("sparse-lora", "1110", template="chat")]
    )  # fmt: skip
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if " of 4 x" in line]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        ("dense, as it came, asked in question", "2 of 4 x 1", "1"),
        ("dense, LoRA 32", "1 of 4 x 1", "3"),
        ("50% (best), LoRA 32", "3 of 4 x 1", ""),
    ]
    assert "asked in chat; trained on gsm8k, 8 examples, 1 epochs; training stays below" in text
    assert "below the model as it came (dense, LoRA 32)\n" in text


def test_results_that_name_no_form_are_of_alpaca() -> None:
    wanted = replace(WANTED, arms=("dense-0shot",), template="alpaca")
    [cell] = pending(wanted, [])
    old = {name: value for name, value in cell.key.items() if name != "template"}
    assert list(pending(wanted, [old])) == []
    assert [each.template for each in pending(replace(wanted, template="chat"), [old])] == ["chat"]


def test_every_arm_has_a_line_without_the_questions_that_any_was_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"correct": True}, {"correct": True, "seen_in_training": True}, {"correct": False}]
    assert answers_text(records) == "1-0"
    seen = [_line(arm, "1-0" if arm == "dense-lora" else "101", **(UNTRAINED if arm == "dense-0shot" else {}))
            for arm in ARMS]  # fmt: skip
    print_tables(seen)
    text = capsys.readouterr().out
    assert "gsm8k: 2 questions" in text
    rows = _table_lines(text).values()
    assert len([row for row in rows if row[1].endswith(" of 2 x 1")]) == len(ARMS)
    assert _table_lines(text)["dense, LoRA 32"][1] == "1 of 2 x 1"


def test_pictures_hold_a_dot_for_every_accuracy(tmp_path: Path) -> None:
    paths = write_pictures([*LINES, {**LINES[4], "sparsity": 0.7}], tmp_path)
    spoken = {path.stem: str(ElementTree.parse(path).findtext("{*}title")).count(" % at ") for path in paths}
    # over sparsity also five of the paper's
    assert spoken == {"real-models-small-gsm8k-sparsity": 5 + 5, "real-models-small-gsm8k-adapters": 5}


def test_an_arm_starts_from_the_recovery_unless_its_mask_would_remove_it(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("{}\n" * 2000)
    cells = {cell.arm: cell for cell in wanted_tests(Wanted(("small",), (GSM8K,)))}

    def started(base: Path) -> dict[str, dict[str, Any]]:
        return {
            arm: training_keywords(cell, ARMS[arm], rows, str(base)) for arm, cell in cells.items() if cell.is_trained
        }

    assert {keywords["init"] for keywords in started(tmp_path).values()} == {"lora"}
    (tmp_path / "recovery").mkdir()
    starts = started(tmp_path)
    assert {arm: keywords["init"] for arm, keywords in starts.items()} == {
        "dense-lora": "lora", "dense-nls": "lora", "sparse-lora": "recovery", "sparse-nls": "recovery",
        "sparse-nls-taught": "recovery", "sparse-nested": "recovery", "sparse-sparsepeft": "lora",
    }  # fmt: skip
    assert starts["sparse-lora"]["warmup_steps"] == 12  # of 125 steps
    (tmp_path / "heal.json").write_text(json.dumps({"achieved": 0.5}))
    assert checked_base("small:best-0.5", tmp_path, 0.5) == tmp_path


@pytest.mark.slow  # a pruning, three trainings, two searches
def test_cells_of_every_kind_run_on_a_tiny_model(data: Path, tmp_path: Path) -> None:
    setting = Setting(
        data, tmp_path / "work", {"small": str(save_tiny(tmp_path / "base"))}, validation_limit=4,
        pruning={"num_samples": 2, "sequence_length": 32}, training={"device": "cpu", "max_steps": 1},
        evaluation={"device": "cpu", "precision": "fp32"},
    )  # fmt: skip
    wanted = Wanted(
        ("small",), (GSM8K,), ("sparse-nls", "sparse-sparsepeft"), seeds=(0,), readings=("heuristic", "searched"),
        examples=2, evaluations=2, max_new_tokens=3, validation_limit=4,
    )  # fmt: skip
    tuned = run_cell(next(pending(wanted, [])), setting)
    assert (tuned["kind"], tuned["arm"], tuned["learning_rate"]) == ("tune", "sparse-nls", 1e-4)
    assert math.isfinite(tuned["loss"])
    results = tmp_path / "results.jsonl"
    assert run_cells(replace(wanted, rates=(1e-3,), alphas=(64.0,)), setting, [results], run_cell) == []
    rows = rows_of(results)
    assert [(row["arm"], row["ranks"]) for row in rows] == [
        ("sparse-nls", "heuristic"), ("sparse-nls", "searched"), ("sparse-sparsepeft", "heuristic"),
    ]  # fmt: skip
    assert all(len(row["right"]) == 4 for row in rows)
    assert [row["adapter_parameters"] > 0 for row in rows] == [True, True, False]  # the last is merged
    assert rows[1]["search"]["loss"] <= rows[1]["search"]["first_loss"]
    assert all(row["peak_bytes"].keys() == row["seconds"].keys() for row in rows)
