"""The benchmark of what search is worth: rows that are appended once, a table that pairs and pools."""

import sys
from pathlib import Path

import pytest
from benchmarks.report import rows_of
from benchmarks.search_pays import ENDS, STRATEGIES, fronts, main, table

from shears.adapt.train import train
from tests.searching.test_stage import rows
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train(
        save_tiny(folder / "base"), folder / "adapter", data=rows(folder / "train.jsonl", 0), ranks=(4, 2, 1),
        max_steps=1, batch_size=4, device="cpu", precision="fp32",
    )  # fmt: skip


def test_every_strategy_is_searched_on_validation_and_measured_on_test_once(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, test, results = rows(tmp_path / "v.jsonl", 1), rows(tmp_path / "t.jsonl", 2), tmp_path / "found.jsonl"
    command = ["run", "--adapter", f"seed0={adapter}", "--validation", validation, "--test", test, "--results",
               str(results), "--evaluations", "4", "--task", "number", "--test-limit", "3"]  # fmt: skip
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["search_pays", *command])
        main()
    found = {each["strategy"]: each for each in rows_of(results)}
    assert list(found) == list(STRATEGIES)
    assert len(rows_of(results)) == len(STRATEGIES)
    assert all(len(each["right"]) == 3 for each in found.values())
    sizes = [found[name]["parameters"] for name in ("minimal", "heuristic", "maximal")]
    assert sizes == sorted(set(sizes))
    assert all(found[name]["loss"] <= found["heuristic"]["loss"] for name in found if name not in ENDS)
    monkeypatch.setattr(sys, "argv", ["search_pays", "table", str(results)])
    capsys.readouterr()
    main()
    assert capsys.readouterr().out.count("\n") == len(STRATEGIES) + 2


def test_seeds_are_pooled_and_paired_with_the_heuristic_of_the_same_super_adapter() -> None:
    def row(adapter: str, strategy: str, right: list[bool]) -> dict[str, object]:
        return {"adapter": adapter, "strategy": strategy, "right": right, "loss": 0.5, "parameters": 5e6, "seconds": 9}

    lines = list(table([
        row("a", "heuristic", [True, False, False, False]), row("b", "heuristic", [True, True, False, False]),
        row("a", "NSGA-II", [True, True, False, False]), row("b", "NSGA-II", [True, True, True, False]),
        row("a", "minimal", [False] * 4),
    ]))  # fmt: skip
    assert lines[2].startswith("| heuristic | 25.0% | 50.0% | 37.5% (")
    assert "| - | 0.5000 | 5.00 M | 9 |" in lines[2]
    assert lines[3].startswith("| minimal | 0.0% | - | 0.0% (")
    assert "| -25.0 (" in lines[3]
    assert "| +25.0 (" in lines[4]


def test_fronts_are_compared_in_one_box_a_super_adapter() -> None:
    def row(adapter: str, strategy: str, *front: tuple[float, float]) -> dict[str, object]:
        points = [{"loss": loss, "parameters": size} for loss, size in front]
        return {"adapter": adapter, "strategy": strategy, "front": points}

    lines = list(fronts([
        row("a", "random", (2.0, 1e6), (1.0, 3e6)), row("a", "NSGA-II", (2.0, 2e6), (1.5, 2.5e6), (3.0, 1e6)),
        row("b", "NSGA-II", (1.0, 1e6), (0.5, 2e6)),
    ]))  # fmt: skip
    # box of a: losses 1 to 3, sizes 1 to 3 M; random's corner (2, 1) covers half of it
    assert lines[2] == "| random | 0.500 | - | 0.500 | 2.0 | 1.00 to 3.00 |"
    # (2, 2) covers a quarter and (1.5, 2.5) half a quarter of a quarter more: .25 + .5 * .5 / 4
    assert lines[3] == "| NSGA-II | 0.312 | 0.000 | 0.156 | 2.5 | 1.00 to 2.50 |"
