"""Seeds: evaluated right after the heuristic by every strategy, resumable; in the stage, from the training log."""

import json
import random
from pathlib import Path
from typing import Any

import optuna
import pytest

import shears.searching.seeds as seeds_module
import shears.searching.stage as stage_module
from shears.adapt.load import load_super_adapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.errors import InputError
from shears.searching.seeds import FEWEST, Seeds, pairs_for, parameters_per_rank
from shears.searching.shared.place import Place
from shears.searching.shared.study import open_ledger
from shears.searching.stage import STRATEGIES, run_search, search
from shears.searching.strategies.base import ACCURACY, LOSS, Evaluated, Figures, Plan
from shears.searching.surrogate import fit, rank_correlation, training_losses
from tests.searching.formulas import BUDGET, a_plan, climb, conflicting, make_space, separable
from tests.searching.logs import planted, write
from tests.searching.shared.test_study import refuse, url_of
from tests.searching.test_stage import Killed, die_after

SETTINGS: dict[str, Any] = {"max_evaluations": 8, "seeds": 3, "device": "cpu", "precision": "fp32"}


def drawn(space: SearchSpace, num: int) -> tuple[RankConfig, ...]:
    generator = random.Random(1)
    return tuple(space.random(generator) for _ in range(num))


SEARCHES = [name for name in STRATEGIES if name != "exhaustive"]  # which has no use for a small budget


def seeded(strategy: str, seeds: tuple[RankConfig, ...], budget: int = BUDGET) -> Plan:
    return Plan(strategy, budget, 0, LOSS, seeds)


@pytest.mark.parametrize("strategy", SEARCHES)
def test_every_strategy_evaluates_the_heuristic_then_the_seeds_each_once(strategy: str) -> None:
    space = make_space(6)
    seeds = drawn(space, 4)
    plan = seeded(strategy, (seeds[0], space.heuristic(), *seeds))
    found = [e.ranks for e in run_search(space, conflicting(space), plan).evaluations]
    assert found[:5] == [space.heuristic(), *seeds]
    assert len(found) == 5 if strategy == "heuristic" else len(found) > 5
    if strategy in ("nsga2", "rnsga2"):
        assert found[5:7] == [space.maximal(), space.minimal()]


@pytest.mark.parametrize("strategy", SEARCHES)
def test_a_budget_smaller_than_the_seeds_is_kept(strategy: str) -> None:
    space = make_space(6)
    assert len(run_search(space, conflicting(space), seeded(strategy, drawn(space, 9), 4)).evaluations) == 4


@pytest.mark.parametrize("strategy", SEARCHES)
@pytest.mark.parametrize("stop", [1, 3, 6, 9, 14])
def test_stopped_anywhere_a_seeded_search_goes_on_as_undisturbed(strategy: str, stop: int, tmp_path: Path) -> None:
    space, place = make_space(6), Place(f"journal://{tmp_path}/study.log", resume=True)
    make, plan = STRATEGIES[strategy], seeded(strategy, drawn(space, 4))
    whole = climb(make, space, conflicting(space), plan).history
    with open_ledger(space, plan, place) as ledger:
        for evaluated in whole[:stop]:
            ledger.add(evaluated)
    assert climb(make, space, conflicting(space), plan, place).history == whole


def test_hill_climbing_climbs_from_the_best_seed() -> None:
    """From the optimum there is nowhere to go: its neighbours are tried, and no other."""
    space = make_space(5)
    objective = separable(space)
    optimum = run_search(space, objective, a_plan("hill-climbing")).chosen.ranks
    found = run_search(space, objective, seeded("hill-climbing", (optimum,), 1000)).evaluations
    known = {space.heuristic(), optimum, *space.neighbours(optimum)}
    assert {e.ranks for e in found} == known


def test_all_seeds_are_parents_of_the_first_children() -> None:
    """Only the seeds have the good rank; with them in the first generation, most children have it."""
    space, decisive = make_space(20), "layers.0.up_proj"
    seeds = tuple(RankConfig({**config, decisive: 32}) for config in drawn(space, 8))

    def objective(ranks: RankConfig) -> Figures:
        return {"loss": float(32 - ranks[decisive]), "parameters": 1}

    history = climb(STRATEGIES["nsga2"], space, objective, seeded("nsga2", seeds, 40)).history
    assert sum(e.ranks[decisive] == 32 for e in history[11:22]) > 8


def test_a_seed_outside_of_the_space_is_refused() -> None:
    space = make_space(2)
    with pytest.raises(InputError, match="rank of layers.1.up_proj must be one of"):
        run_search(
            space, conflicting(space), seeded("random", (RankConfig({**space.heuristic(), "layers.1.up_proj": 5}),))
        )


def test_other_seeds_are_another_study_and_none_are_the_study_as_it_was(tmp_path: Path) -> None:
    space, place = make_space(3), Place(url_of(tmp_path))
    with open_ledger(space, a_plan(), place):
        pass
    about = optuna.load_study(study_name="search", storage=place.url).user_attrs["shears"]
    assert set(about) == {"strategy", "seed", "quality", "space"}
    refuse(space, seeded("test", drawn(space, 2)), Place(url_of(tmp_path), resume=True), "its seeding differs;")


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("strategy", SEARCHES)
def test_the_stage_evaluates_the_seeds_and_says_what_they_were_worth(
    strategy: str, super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    result = result_of(search(super_adapter, tmp_path / "found", data=validation, strategy=strategy, **SETTINGS))
    record, evaluations = result["seeds"], result["evaluations"]
    proposed = [seed["ranks"] for seed in record["configs"]]
    assert 1 <= len(proposed) <= 3
    assert [each["ranks"] for each in evaluations[1 : 1 + len(proposed)]] == proposed
    predicted = [seed["predicted"] for seed in record["configs"]]
    assert predicted == sorted(predicted)
    assert record["num_pairs"] == 28  # of 8 steps of 4 examples the first step is left out
    assert len(record["lowest_losses"]["configs"]) == len(proposed)
    assert (record["rank_correlation"] is None) == (len(evaluations) < FEWEST)


def test_without_seeds_nothing_is_recorded_and_no_log_is_read(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds_module, "read_pairs", None)
    result = result_of(search(super_adapter, tmp_path / "found", data=validation, **{**SETTINGS, "seeds": 0}))
    assert "seeds" not in result


def test_without_seeds_the_study_has_the_name_it_had_before_there_were_any() -> None:
    fields = {"data": "x.jsonl", "seeds": 0}
    assert "seeds" not in stage_module._asked(SearchConfig(**fields), "f")
    assert stage_module._asked(SearchConfig(**{**fields, "seeds": 2}), "f")["seeds"] == 2


def test_interrupted_and_resumed_a_seeded_search_writes_the_same_bytes(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": validation, "strategy": "nsga2"}
    whole = search(super_adapter, tmp_path / "whole", **settings)
    for stop in (2, 4):
        with monkeypatch.context() as patch:
            die_after(patch, stop)
            with pytest.raises(Killed):
                search(super_adapter, tmp_path / "found", resume=stop > 2, **settings)
    resumed = search(super_adapter, tmp_path / "found", resume=True, **settings)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()


def test_parameters_per_rank_are_those_the_adapter_counts(super_adapter: Path) -> None:
    elastic = load_super_adapter(super_adapter, device="cpu").elastic
    per_rank = parameters_per_rank(elastic)
    for config in (elastic.space.heuristic(), elastic.space.maximal(), *drawn(elastic.space, 3)):
        assert sum(per_rank[g] * rank for g, rank in config.items()) == elastic.num_parameters(config)


def test_the_record_correlates_predictions_with_what_was_measured() -> None:
    """Also where the goal is a high accuracy, and for the published alternative where training saw enough of them."""
    space = make_space(3, (4, 2))
    pairs = planted(space, 200, effect=0.3).pairs
    surrogate = fit(pairs, space, dict.fromkeys(space.ranks, 7))
    seeds = Seeds(tuple(surrogate.best(2)), surrogate, pairs)
    configs = list(dict.fromkeys(drawn(space, 20)))
    losses = [surrogate.predict(config) ** 3 for config in configs]
    measured = [Evaluated(c, {"loss": loss, "parameters": 1}) for c, loss in zip(configs, losses, strict=True)]
    record = seeds.as_data(measured, LOSS)
    assert record["rank_correlation"] == 1.0
    seen = training_losses(pairs, space)
    expected = rank_correlation([seen[config] for config in configs], losses)
    assert record["lowest_losses"]["rank_correlation"] == pytest.approx(expected)
    outside = [Evaluated(space.maximal(), {"parameters": 1}), *measured]  # breaks a bound, and was not measured
    assert seeds.as_data(outside, LOSS) == record
    assert seeds.as_data(measured[: FEWEST - 1], LOSS)["rank_correlation"] is None
    flat = [Evaluated(config, {"loss": 1.0, "parameters": 1}) for config in configs]
    assert seeds.as_data(flat, LOSS)["rank_correlation"] is None
    accurate = [Evaluated(e.ranks, {"accuracy": -e.metrics["loss"], "parameters": 1}) for e in measured]
    assert seeds.as_data(accurate, ACCURACY)["rank_correlation"] == 1.0
    assert json.loads(json.dumps(record)) == record


def test_seeds_need_room_and_a_log(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_evaluations must be above seeds, .* got 3 for 3 seeds"):
        search(super_adapter, tmp_path / "found", data=validation, **{**SETTINGS, "max_evaluations": 3})
    log = super_adapter / "training_log.jsonl"
    content = log.read_text()
    log.unlink()
    try:
        with pytest.raises(InputError, match="must hold a training_log.jsonl to take seeds from"):
            search(super_adapter, tmp_path / "found", data=validation, **SETTINGS)
    finally:
        write(super_adapter, [], content)
    assert not list(tmp_path.glob("found*"))


def test_one_rank_has_no_seeds() -> None:
    """Not even a log to read: after init pissa its rank is half of that in the record."""
    record = {"groups": {name: {"ranks": [8], "modules": [name]} for name in ("a", "b")}}
    with pytest.raises(InputError, match="one rank in each .*pissa.* nothing to search; leave seeds out"):
        pairs_for(SearchConfig(data="-", **SETTINGS), Path("nowhere"), record)
