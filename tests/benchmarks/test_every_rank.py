"""The benchmark of every rank: cells that are made once, tables that pair them, the area under accuracy over rank."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.every_rank import COST_WAYS
from benchmarks.every_rank_table import area_weights, tables
from benchmarks.every_rank_ways import RANKS, Way
from benchmarks.report import rows_of
from benchmarks.tasks import Task

from benchmarks import every_rank, turns
from tests.searching.sums import rows
from tests.tiny import save_tiny


@pytest.mark.parametrize("ranks", [(32, 24, 16, 8), (32, 24, 8), (40, 32, 4, 2), (8,)])
def test_weighted_accuracies_sum_to_the_area_of_the_trapezoids(ranks: tuple[int, ...]) -> None:
    accuracies = dict(zip(ranks, np.random.default_rng(0).random(len(ranks)), strict=True))
    weights = area_weights(ranks)
    found = sum(weights[rank] * accuracies[rank] for rank in ranks) / sum(weights.values())
    ordered = sorted(ranks)
    if len(ranks) == 1:
        assert found == accuracies[ranks[0]]
    else:
        expected = np.trapezoid([accuracies[rank] for rank in ordered], ordered) / (ordered[-1] - ordered[0])
        assert abs(found - expected) < 1e-12


def cell(way: str, seed: int, right: Mapping[str, Any] | str, **more: Any) -> dict[str, Any]:
    """A cell as the benchmark writes it."""
    key = {"task": "t", "start": "plain", "epochs": 1.0, "way": way, "seed": seed}
    return {**key, "kind": "test", "rate": 1e-3, "scaling": 2.0, "right": right, **more}


def test_the_tables_pair_each_rank_with_its_own_lora_and_areas_with_areas() -> None:
    cells = [cell(f"lora-{rank}", seed, {str(rank): "11100"}) for rank in RANKS for seed in (0, 1)]
    cells += [cell("nested", seed, dict.fromkeys(map(str, RANKS), "11110")) for seed in (0, 1)]
    cells.append(cell("uniform", 0, {"32": "11000", "24": "11000", "16": "10000", "8": "00000"}))
    cells.append(cell("nested", 0, {"searched": "11110", "uniform": "11100"}, kind="search", rank=16))
    seconds = {way: [9.0, 1.0 + index, 2.0 + 2 * index] for index, way in enumerate(COST_WAYS)}
    cells.append({**cell("", 0, ""), "kind": "cost", "seconds": seconds})
    text = "\n".join(tables(cells))
    assert "| nested | 80.0% | 80.0% | 80.0% | 80.0% | 80.0% |" in text
    assert "| LoRA of each rank | 60.0% | 60.0% | 60.0% | 60.0% | 60.0% |" in text
    assert "| uniform | 40.0% | 40.0% | 20.0% | 0.0% | 26.7% |" in text  # (40/2 + 40 + 20 + 0/2) / 3
    assert "| nested, rank 8, against LoRA of rank 8 | +20.0 |" in text
    assert "| area: nested against uniform | +53.3 |" in text
    assert "| area: nested against lora | +20.0 |" in text
    assert "| nested | 3.00 | 2.000 | 2.000 | 2.000 |" in text
    assert "| nested: searched against uniform rank 16 | +20.0 |" in text


def test_the_cost_of_a_step_is_kept_as_the_seconds_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(steps: Mapping[str, Any], count: int) -> dict[str, turns.Taken]:
        return {name: turns.Taken([float(step) for step in range(count)], peak=1) for name in steps}

    monkeypatch.setattr(turns, "take_turns", take)
    monkeypatch.setattr(every_rank, "TASKS", {"tiny": Task("tiny", lambda source, target: {}, {})})
    results = tmp_path / "cells.jsonl"
    common = ["--data", str(tmp_path), "--task", "tiny", "--start", "dense", "--steps", "2", "--work",
              str(tmp_path / "work"), "--results", str(results)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["benchmark", "cost", *common])
    every_rank.main()
    [row] = rows_of(results)
    assert (row["kind"], row["seconds"]) == ("cost", {way: [0.0, 1.0] for way in COST_WAYS})


def test_a_run_tunes_trains_measures_and_searches_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: Path, target: Path) -> dict[str, Path]:
        names = ("train", "validation", "test")
        return {name: Path(rows(target / f"{name}.jsonl", seed)) for seed, name in enumerate(names)}

    task = Task("tiny", write, {"task": "number", "max_new_tokens": 2})
    monkeypatch.setattr(every_rank, "TASKS", {"tiny": task})
    monkeypatch.setattr(every_rank, "SEARCHED", (8,))
    monkeypatch.setattr(every_rank, "WAYS", {"nested": Way("nested", {"sampling": "nested"}, (16, 8))})
    results = tmp_path / "cells.jsonl"
    common = ["--data", str(tmp_path), "--task", "tiny", "--model", str(save_tiny(tmp_path / "base")), "--start",
              "dense", "--ways", "nested", "--rates", "1e-3,1e-2", "--scalings", "2,4", "--epochs", "0.1", "--limit",
              "3", "--evaluations", "2", "--work", str(tmp_path / "work"), "--results", str(results)]  # fmt: skip
    for command in ("run", "search", "run"):
        monkeypatch.setattr(sys, "argv", ["every_rank", command, *common])
        every_rank.main()
    *tunings, test, search = rows_of(results)
    assert [row["kind"] for row in (*tunings, test, search)] == ["tuning"] * 3 + ["test", "search"]
    losses = {(row["rate"], row["scaling"]): sum(row["losses"].values()) for row in tunings}
    assert losses.keys() == {(1e-3, 2), (1e-2, 2), (test["rate"], 4)}
    assert losses[test["rate"], test["scaling"]] == min(losses[test["rate"], scaling] for scaling in (2, 4))
    assert tunings[0]["losses"].keys() == test["right"].keys() == {"16", "8"}
    assert len(search["right"]["searched"]) == len(test["right"]["8"]) == 3
    assert search["right"]["uniform"] == test["right"]["8"]
