"""The stage with races and predicted orders: resumed as undisturbed, and what is chosen was measured whole."""

from pathlib import Path
from typing import Any

import pytest

from shears.adapt.load import load_super_adapter
from shears.cli.tables import print_search
from shears.config import SearchConfig
from shears.errors import InputError
from shears.records.artifacts import read_json
from shears.searching.measure.validation import open_validation
from shears.searching.stage import search
from shears.searching.tied import tie_layers
from tests.searching.test_stage import Killed, die_after, rows

SETTINGS: dict[str, Any] = {
    "max_evaluations": 9, "device": "cpu", "precision": "fp32", "race_error": 0.3, "order": "predicted",
}  # fmt: skip


@pytest.fixture
def examples(tmp_path: Path) -> str:
    text = "".join(Path(rows(tmp_path / "some.jsonl", seed)).read_text() for seed in range(16))
    (tmp_path / "many.jsonl").write_text(text)
    return str(tmp_path / "many.jsonl")


def test_a_raced_search_is_resumed_with_the_same_bytes_and_chooses_what_was_measured_whole(
    super_adapter: Path,
    examples: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = search(super_adapter, tmp_path / "whole", data=examples, **SETTINGS)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            search(super_adapter, tmp_path / "search", data=examples, **SETTINGS)
    resumed = search(super_adapter, tmp_path / "search", data=examples, resume=True, **SETTINGS)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    result = read_json(whole / "result.json")
    assert result["race"]["error"] == 0.3
    assert 0 < result["race"]["decided_early"] <= 9
    assert result["race"]["examples"] < result["race"]["examples_without"] == 9 * 128
    print_search(whole / "result.json")
    assert f"race: {result['race']['decided_early']} decided early, " in capsys.readouterr().out
    assert "examples" not in result["chosen"]["metrics"]
    assert result["chosen"]["metrics"]["loss"] <= result["evaluations"][0]["metrics"]["loss"]


def test_the_first_neighbour_is_the_one_that_the_slopes_promise_most_of(
    super_adapter: Path, examples: str, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "race_error": 0.0, "max_evaluations": 2}
    result = read_json(search(super_adapter, tmp_path / "out", data=examples, **settings) / "result.json")
    adapter = load_super_adapter(super_adapter, device="cpu")
    space = adapter.elastic.space
    config = SearchConfig(data=examples, **settings)
    predictor = open_validation(adapter, config, tie_layers(space, 1)).qualities["loss"].predictor()
    assert predictor is not None
    best = min(space.neighbours(space.heuristic()), key=predictor)
    assert result["evaluations"][1]["ranks"] == dict(best)


@pytest.mark.parametrize(
    "settings", [{"objective": "accuracy", "task": "number"}, {"changes": 2}, {"strategy": "random"}]
)
def test_an_order_that_nothing_predicts_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.order (predicted needs loss|needs strategy hill-climbing)"):
        search("nowhere", tmp_path, data="unused", order="predicted", **settings)
