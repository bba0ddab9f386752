"""The tables of the reproduction: seeds are pooled, claims are paired by seed, the paper's figures are beside ours."""

import re
from typing import Any

import pytest
from benchmarks.nls import table
from benchmarks.reproduction import TABLES, as_cell, page, tables


def _cell(adapter: str, seed: int, bits: str, init: str = "lora", ranks: str = "heuristic") -> dict[str, Any]:
    key = {"task": "t", "sparsity": 0.5, "adapter": adapter, "seed": seed, "epochs": 1.0, "init": init}
    return {**key, "right": {ranks: bits}, "seconds": {}}


def _line(arm: str, seed: int, task: str = "t", **right: str) -> dict[str, Any]:
    """A line of benchmarks.nls."""
    losses = dict.fromkeys(("maximal", "heuristic"), 1.0)
    return {"task": task, "arm": arm, "seed": seed, "epochs": 1.0, "seconds": 0.0, "losses": losses, "right": right}


def _cells(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for line in lines if (cell := as_cell(line)) is not None]


def test_seeds_are_pooled_and_claims_paired_by_seed() -> None:
    text = "\n".join(tables([
        _cell("lora", 0, "1100"), _cell("lora", 1, "1000"), _cell("nls", 0, "1110"), _cell("nls", 1, "1100"),
        _cell("nls", 2, "0000"),
        *(_cell("lora", 0, bits, init) for init, bits in (
            ("PEFT's start, pruned by admm", "1100"), ("recovery by moments, pruned by admm", "1111"),
            ("recovery by moments", "1110"),
        )),
        *_cells(_line("sparse-peft", 0, heuristic="1100")),
    ]))  # fmt: skip
    assert "| 50% | lora | PEFT's start | heuristic | 37.5% |" in text
    assert "| 4 x 2 | 50.0%, 25.0% |" in text
    assert "| 50% | nls | PEFT's start | heuristic | 41.7% |" in text
    assert re.search(r"\| 50%, PEFT's start: NLS against LoRA \| \+25\.0 \|.*\| 0, 1 \|", text)  # the common seeds
    assert "| 50%, recovery by moments: LoRA against LoRA from PEFT's start | +25.0 |" in text  # on the same base
    assert "| 50%, recovery by moments, pruned by admm: LoRA against LoRA from PEFT's start | +50.0 |" in text
    assert "| 50%, PEFT's start: SparsePEFT, merged, against NLS un-merged | -25.0 |" in text
    assert "against dense LoRA" not in text


def test_of_a_run_made_again_the_last_counts() -> None:
    first = _line("nls-moments", 0, heuristic="0000")
    again = _line("nls-moments", 0, heuristic="1100", maximal="1110")
    lines = [first, _line("nls-moments", 1, heuristic="1100"), _line("lora-moments", 1, heuristic="1000"), again]
    text = "\n".join(table(lines))
    assert "| nls-moments | heuristic | 50.0% |" in text
    assert "| 4 x 2 |" in text
    assert "| nls-moments | maximal | 75.0% |" in text  # of the one seed that has it
    assert "| nls-moments against lora-moments | +25.0 |" in text
    assert "NLS, maximal against heuristic | +25.0 |" in "\n".join(tables(_cells(*lines)))


@pytest.mark.parametrize(
    ("task", "set_there", "nls_there", "minimal_there", "dense_there"),
    [
        ("mawps", "LLaMA-7B, mean of four math sets (of them MAWPS)", "45.3 (78.6)", "43.5", "46.9 (79.0)"),
        ("arc-easy-text", "LLaMA-7B, mean of eight commonsense sets", "72.5", "", "74.7"),
    ],
)
def test_the_page_sets_ours_beside_the_papers_figures(
    task: str, set_there: str, nls_there: str, minimal_there: str, dense_there: str
) -> None:
    """Stars mark one seed and two."""
    dense = {**_cell("lora", 0, "1111"), "task": task, "sparsity": 0.0}
    lines = [_line("nls", 0, task, heuristic="1100", minimal="1000"), _line("nls", 1, task, heuristic="1110"),
             _line("lora-pissa", 0, task, heuristic="1111"), dense]  # fmt: skip
    text = "\n".join(page(_cells(*lines)))
    assert f"| {task}, 1 epoch, 4 questions | paper: {set_there} | PEFT's start |" in text
    assert re.search(rf"^\| 50 %, NLS, heuristic \| {re.escape(nls_there)} \| 62\.5 % \(.*\) \\\*\\\* \|$", text, re.M)
    assert f"| smallest ranks | {minimal_there} | 25.0 % (" in text
    assert re.search(rf"^\| dense, LoRA \| {re.escape(dense_there)} \| 100\.0 % \(.*\) \\\* \|$", text, re.M)
    assert "hill climbing" not in text
    for lines_of_table, *papers in TABLES.values():
        assert all(figures.keys() <= {name for name, *_ in lines_of_table} for _, figures in papers)
