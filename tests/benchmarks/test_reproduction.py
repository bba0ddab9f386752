"""The tables of the reproduction: seeds are pooled, the paper's figures are beside ours."""

import re
from typing import Any

import pytest
from benchmarks.reproduction import TABLES, as_cell, page


def _cell(adapter: str, seed: int, bits: str, init: str = "lora", ranks: str = "heuristic") -> dict[str, Any]:
    key = {"task": "t", "sparsity": 0.5, "adapter": adapter, "seed": seed, "epochs": 1.0, "init": init}
    return {**key, "right": {ranks: bits}, "seconds": {}}


def _line(arm: str, seed: int, task: str = "t", **right: str) -> dict[str, Any]:
    """A line with the name of an arm."""
    losses = dict.fromkeys(("maximal", "heuristic"), 1.0)
    return {"task": task, "arm": arm, "seed": seed, "epochs": 1.0, "seconds": 0.0, "losses": losses, "right": right}


def _cells(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for line in lines if (cell := as_cell(line)) is not None]


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
