"""The stage with other objectives, constraints and tied layers, on a tiny super-adapter."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import shears.searching.stage as stage_module
from shears.adapt.load import load_super_adapter, space_of_record
from shears.adapt.space import SearchSpace
from shears.checkpoints.inspection import inspect
from shears.cli.tables import print_inspection, print_search
from shears.config import SearchConfig
from shears.errors import InputError
from shears.export.stage import export_adapter
from shears.records.artifacts import read_json
from shears.records.folders import partial_folder
from shears.searching.stage import search
from shears.searching.strategies.base import Goal
from tests.searching.test_stage import SETTINGS


def space_of(folder: Path) -> SearchSpace:
    return space_of_record(json.loads((folder / "search_space.json").read_text()))


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "result.json")
    return found


@pytest.mark.parametrize("strategy", ["nsga2", "rnsga2", "hill-climbing"])
def test_three_objectives_have_a_front_of_three(
    strategy: str, super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    folder = search(
        super_adapter, tmp_path / "found", data=validation, objective="accuracy,loss,macs", task="number",
        max_new_tokens=2, **{**SETTINGS, "strategy": strategy, "max_evaluations": 8},
    )  # fmt: skip
    result = result_of(folder)
    assert result["objectives"] == ["accuracy", "loss", "macs"]
    goal = Goal(("accuracy", "loss", "macs"))
    costs = [goal.cost(each["metrics"]) for each in result["evaluations"]]
    expected = [
        costs.index(one)
        for one in costs
        if not any(a != one and all(x <= y for x, y in zip(a, one, strict=True)) for a in costs)
    ]
    assert sorted(result["evaluations"].index(each) for each in result["pareto"]) == sorted(expected)
    assert costs[result["evaluations"].index(result["chosen"])] == min(costs)
    assert set(result["hypervolume"]["reference"]) == {"accuracy", "loss", "macs"}


def test_tied_layers_give_a_result_of_the_whole_space_that_export_takes(
    super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    space = space_of(super_adapter)
    settings = {**SETTINGS, "strategy": "exhaustive", "max_evaluations": 27}
    folder = search(super_adapter, tmp_path / "found", data=validation, tie_layers=2, **settings)
    result = result_of(folder)
    assert len(result["evaluations"]) == 3 ** (len(space.ranks) // 2)
    for entry in result["evaluations"]:
        assert space.check(entry["ranks"])
        assert all(
            rank == entry["ranks"][group.replace("layers.0", "layers.1")] for group, rank in entry["ranks"].items()
        )
    exported = export_adapter(super_adapter, tmp_path / "sub", ranks=str(folder / "result.json"))
    assert read_json(exported / "sub_adapter.json")["ranks"] == result["chosen"]["ranks"]


def test_a_bound_is_met_by_the_chosen_one_and_by_the_front(
    super_adapter: Path, validation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elastic = load_super_adapter(super_adapter, device="cpu").elastic
    limit = elastic.num_parameters(elastic.space.heuristic()) - 1
    folder = search(super_adapter, tmp_path / "found", data=validation, constraint=f"parameters<={limit}", **SETTINGS)
    result = result_of(folder)
    assert result["evaluations"][0]["metrics"]["parameters"] > limit
    assert all(entry["metrics"]["parameters"] <= limit for entry in [result["chosen"], *result["pareto"]])
    print_search(folder / "result.json")
    print_inspection(inspect(folder))
    shown = capsys.readouterr().out
    assert shown.count("on the Pareto front of loss and parameters with parameters<=") == 2
    assert shown.count("hypervolume") == 2
    assert shown.count("not measured") == 1  # the loss of the heuristic, which breaks the bound


def test_where_nothing_is_feasible_the_study_is_kept_and_goes_on_with_a_larger_budget(
    super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    losses = sorted(
        e["metrics"]["loss"]
        for e in result_of(search(super_adapter, tmp_path / "all", data=validation, **SETTINGS))["evaluations"]
    )
    out, settings = tmp_path / "found", {**SETTINGS, "data": validation, "constraint": f"loss<={losses[0]}"}
    with pytest.raises(InputError, match="go on with --resume and a larger --max-evaluations"):
        search(super_adapter, out, **{**settings, "max_evaluations": 1})
    assert (partial_folder(out) / "study.db").is_file()
    assert not out.exists()
    result = result_of(search(super_adapter, out, resume=True, **{**settings, "max_evaluations": 12}))
    assert result["chosen"]["metrics"]["loss"] <= losses[0]


def test_what_cannot_be_searched_is_refused_before_the_model_is_loaded(
    super_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "load_super_adapter", None)
    with pytest.raises(InputError, match="max_evaluations must be at least 729, the whole space"):
        search(super_adapter, tmp_path / "found", data="x.jsonl", strategy="exhaustive")
    with pytest.raises(InputError, match="precision fp16 needs a CUDA device"):
        search(super_adapter, tmp_path / "found", data="x.jsonl", precision="fp16", device="cpu")
    monkeypatch.setitem(sys.modules, "pymoo.core.population", None)
    with pytest.raises(InputError, match="pip install"):
        search(super_adapter, tmp_path / "found", data="x.jsonl", strategy="rnsga2")
    assert not list(tmp_path.iterdir())


def test_a_bound_out_of_reach_is_refused_before_anything_is_evaluated(
    super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="constraint must be within reach, got nonzeros<=1k, and the smallest"):
        search(super_adapter, tmp_path / "found", data=validation, constraint="nonzeros<=1000", **SETTINGS)


def test_budgets_do_not_name_a_search() -> None:
    identity = stage_module._identifying(SearchConfig(data="x.jsonl"), "f")
    assert SearchConfig.model_fields.keys() - identity.keys() == {"max_evaluations", "cache_budget", "stale_after"}
