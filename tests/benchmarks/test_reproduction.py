"""The script of the paper's tables: cells are made once and resumed, the tables show the results."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.nls_table import print_table
from benchmarks.nls_tasks import Task
from benchmarks.report import rows_of
from benchmarks.reproduction import Setting, cells, run_cells
from benchmarks.reproduction_page import TABLES, as_cell, print_page
from benchmarks.reproduction_table import print_tables

from benchmarks import reproduction
from tests.tiny import save_tiny

EVALUATION = {"task": "number", "max_new_tokens": 3, "precision": "fp32", "device": "cpu"}


def _write(source: Path, target: Path) -> dict[str, Path]:
    """Write sums of two digits in three splits; return the file of each."""
    target.mkdir(parents=True, exist_ok=True)
    paths = {}
    for number, split in enumerate(("train", "validation", "test")):
        rows = [{"prompt": f"{number}{n}+1=", "completion": f" {n}", "answer": n} for n in range(8)]
        paths[split] = target / f"{split}.jsonl"
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(reproduction, "RANKS", {"lora": (4,), "nls": (4, 2)})
    monkeypatch.setattr(reproduction, "SEARCHES", {"hill-climbing": {"strategy": "hill-climbing", "device": "cpu"}})
    base = save_tiny(tmp_path / "base")
    training = {"max_steps": 2, "batch_size": 4, "device": "cpu"}
    pruning = {"num_samples": 2, "sequence_length": 16, "recover_rank": 4}
    return Setting(
        tmp_path / "work", str(base), searches=("hill-climbing",), max_evaluations=2, training=training,
        pruning=pruning,
    )  # fmt: skip


@pytest.mark.slow  # four trainings, two searches
def test_every_cell_is_made_once_and_becomes_a_line(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("sums", _write, EVALUATION)
    data, results = task.write(tmp_path, setting.work / "sums"), tmp_path / "results.jsonl"
    keys = list(cells("sums", [0.0, 0.5], ["lora", "nls"], [0], setting))
    assert len(keys) == 4
    run_cells(iter(keys), task, data, setting, results)
    rows = rows_of(results)
    assert [row["right"].keys() for row in rows[:2]] == [
        {"heuristic"}, {"heuristic", "maximal", "minimal", "hill-climbing"},
    ]  # fmt: skip
    assert {len(bits) for row in rows for bits in row["right"].values()} == {8}
    monkeypatch.setattr(reproduction, "run_cell", lambda *_: pytest.fail("a cell was made twice"))
    run_cells(iter(keys), task, data, setting, results)
    assert rows_of(results) == rows
    print_tables(rows)
    text = capsys.readouterr().out
    for words in (
        "### sums, 3 epochs",
        "| 50% | nls | PEFT's start | hill-climbing |",
        "50%, PEFT's start: NLS against LoRA",
        "Paper",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("option", "known", "words"),
    [
        ("--searches", "rnsga2", "must be among hill-climbing, rnsga2, got annealing"),
        ("--ranks", "maximal", "must be among heuristic, maximal, minimal, got annealing"),
    ],
)
def test_only_searches_and_ranks_of_the_ablation_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, known: str, words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduction", "run", option, f"{known},annealing"])
    with pytest.raises(SystemExit) as stop:
        reproduction.main()
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_seeds_are_pooled_and_claims_paired_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def row(adapter: str, seed: int, bits: str, sparsity: float = 0.5) -> dict[str, Any]:
        key = {"task": "t", "sparsity": sparsity, "adapter": adapter, "seed": seed, "epochs": 1.0, "init": "lora"}
        return {**key, "right": {"heuristic": bits}, "seconds": {}}

    print_tables([row("lora", 0, "1100"), row("lora", 1, "1000"), row("nls", 0, "1110"), row("nls", 1, "1100"),
                  row("nls", 2, "0000")])  # fmt: skip
    text = capsys.readouterr().out
    assert "| 50% | lora | PEFT's start | heuristic | 37.5% |" in text
    assert "| 4 x 2 | 50.0%, 25.0% |" in text
    assert "| 50% | nls | PEFT's start | heuristic | 41.7% |" in text
    assert "| 50%, PEFT's start: NLS against LoRA | +25.0 |" in text  # of the seeds that both have
    assert "| 0, 1 |" in text
    assert "dense LoRA | " not in text


@pytest.mark.parametrize("base", ["", ", pruned by admm"])
def test_the_recovery_is_compared_with_pefts_start_on_the_same_base(
    base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(init: str, bits: str) -> dict[str, Any]:
        key = {"task": "t", "sparsity": 0.5, "adapter": "lora", "seed": 0, "epochs": 1.0, "init": init}
        return {**key, "right": {"heuristic": bits}, "seconds": {}}

    plain = f"PEFT's start{base}" if base else "lora"
    print_tables([row(plain, "1100"), row(f"recovery by moments{base}", "1110")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "LoRA from PEFT's start" in line]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| 50%, recovery by moments{base}: LoRA against LoRA from PEFT's start", "+25.0"]
    ]


def test_a_masked_adapter_merged_is_compared_with_nls_un_merged(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"task": "t", "arm": arm, "seed": 0, "epochs": 1.0, "right": {"heuristic": bits}, "seconds": 0.0}
        for arm, bits in (("nls", "1110"), ("sparse-peft", "1100"), ("sparse-peft-alpha128", "1111"))
    ]
    print_tables([row for each in rows if (row := as_cell(each)) is not None])
    text = capsys.readouterr().out
    assert "| 50%, PEFT's start: SparsePEFT, merged, against NLS un-merged | -25.0 |" in text
    assert "| 50%, PEFT's start: SparsePEFT, alpha 128, merged, against NLS un-merged | +25.0 |" in text


def test_of_a_run_made_again_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    key = {"task": "t", "arm": "nls-moments-curriculum", "seed": 0, "epochs": 1.0, "seconds": 0.0}
    losses = {"maximal": 1.0, "heuristic": 1.0}
    first = {**key, "losses": losses, "right": {"heuristic": "0000"}}
    again = {**key, "losses": losses, "right": {"heuristic": "1100", "maximal": "1110"}}
    other = {**first, "seed": 1, "right": {"heuristic": "1100"}}
    print_table([first, other, again])
    text = capsys.readouterr().out
    assert "| nls-moments-curriculum | heuristic | 50.0% |" in text
    assert "| 4 x 2 |" in text
    assert "| nls-moments-curriculum | maximal | 75.0% |" in text  # of the one seed that has it
    assert "| 4 x 1 |" in text
    print_tables([row for each in (first, other, again) if (row := as_cell(each)) is not None])
    assert "NLS in a curriculum, maximal against heuristic | +25.0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "set_there", "nls_there", "minimal_there", "dense_there"),
    [
        ("mawps", "LLaMA-7B, mean of four math sets (of them MAWPS)", "45.3 (78.6)", "43.5", "46.9 (79.0)"),
        ("arc-easy-text", "LLaMA-7B, mean of eight commonsense sets", "72.5", "", "74.7"),
    ],
)
def test_the_page_sets_ours_beside_the_papers_figures(
    task: str, set_there: str, nls_there: str, minimal_there: str, dense_there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines come from both benchmarks. If an arm is measured twice, the last counts; stars mark one and two seeds."""
    nls = [
        {"task": task, "arm": arm, "seed": seed, "epochs": 1.0, "right": right}
        for arm, seed, right in (
            ("nls", 0, {"heuristic": "0000"}),
            ("nls", 0, {"heuristic": "1100", "minimal": "1000"}),
            ("nls", 1, {"heuristic": "1110"}),
            ("lora-pissa", 0, {"heuristic": "1111"}),
        )
    ]
    cell = {"task": task, "sparsity": 0.0, "adapter": "lora", "seed": 0, "epochs": 1.0, "init": "lora",
            "right": {"heuristic": "1111"}, "seconds": {}}  # fmt: skip
    print_page([row for each in (*nls, cell) if (row := as_cell(each)) is not None])
    text = capsys.readouterr().out
    assert f"| {task}, 1 epoch, 4 questions | paper: {set_there} | PEFT's start |" in text
    assert re.search(rf"^\| 50 %, NLS, heuristic \| {re.escape(nls_there)} \| 62\.5 % \(.*\) \\\*\\\* \|$", text, re.M)
    assert f"| smallest ranks | {minimal_there} | 25.0 % (" in text
    assert re.search(rf"^\| dense, LoRA \| {re.escape(dense_there)} \| 100\.0 % \(.*\) \\\* \|$", text, re.M)
    assert "hill climbing" not in text
    assert as_cell(nls[-1]) is None


def test_every_figure_of_the_paper_belongs_to_a_line() -> None:
    for lines, *papers in TABLES.values():
        assert all(figures.keys() <= {name for name, *_ in lines} for _, figures in papers)
