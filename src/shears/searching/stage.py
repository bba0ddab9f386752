"""Sub-adapter search: on any objective (`run_search`), and as the stage that writes `result.json` (`search`)."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shears.adapt.load import SuperAdapter, load_super_adapter, space_of_record
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.config.resolve import build
from shears.config.strategies import StrategyOptions
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import check_apart
from shears.models.devices import pick_device, resolved_precision
from shears.progress import meter
from shears.records.artifacts import RESULT, SEARCH_SPACE, as_data, read_record, write_json
from shears.records.folders import working_folder
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.searching.explore import explore, ranked
from shears.searching.held_out_gain import gain_report
from shears.searching.measure.evaluators import Evaluator, as_evaluator
from shears.searching.measure.gauged import GaugedEvaluator, race_report
from shears.searching.measure.measuring import Validation, open_test, open_validation, open_whole
from shears.searching.result import SearchResult, conclude
from shears.searching.shared.place import Place, place_of
from shears.searching.shared.study import dropped_if_unused, open_ledger
from shears.searching.shared.workers import forget_name
from shears.searching.strategies.base import ACCURACY, LOSS, Evaluated, Goal, Objective, Plan, Strategy, digest
from shears.searching.strategies.ends import maximal, minimal
from shears.searching.strategies.evolution import Evolution
from shears.searching.strategies.evolve import Nsga2
from shears.searching.strategies.exhaustive import Exhaustive
from shears.searching.strategies.heuristics import Heuristic
from shears.searching.strategies.hill_climb import HillClimbing
from shears.searching.strategies.random_search import RandomSearch
from shears.searching.strategies.rnsga2 import rnsga2
from shears.searching.tied import TiedSpace, tie_layers

logger = logging.getLogger(__name__)
IN_MEMORY = Place()
STRATEGIES: Mapping[str, Callable[[SearchSpace, Plan], Strategy]] = MappingProxyType(
    {
        "heuristic": Heuristic,
        "maximal": maximal,
        "minimal": minimal,
        "random": RandomSearch,
        "exhaustive": Exhaustive,
        "hill-climbing": HillClimbing,
        "evolution": Evolution,
        "nsga2": Nsga2,
        "rnsga2": rnsga2,
    }
)
LATER = (
    "test",
    "study",
    "constraint",
    "tie_layers",
    "race_error",
    "race_indifference",
    *StrategyOptions.model_fields,
)
WITHOUT_EFFECT = ("max_evaluations", "cache_budget", "stale_after", "storage_timeout")  # on proposals and figures
AFTER_HEURISTIC = {"heuristic": 0, "maximal": 1, "minimal": 1}  # evaluations of the strategies that do not search


def run_search(
    space: SearchSpace, objective: Objective | Evaluator, plan: Plan, place: Place = IN_MEMORY
) -> SearchResult:
    """Search `space` for what `objective` calls best; any callable from RankConfig to figures will do.

    `place` names a storage in which an interrupted search can be resumed. InputError for an unknown strategy, figures
    that are not finite, a storage that holds something else, or where nothing evaluated
    meets the goal's constraints.
    """
    make_strategy(space, plan)  # refuses what it cannot search before there is a study
    most = 1 + AFTER_HEURISTIC.get(plan.strategy, space.size)
    budget = min(most, space.size, plan.max_evaluations)
    with open_ledger(space, plan, place) as ledger, meter("search", budget, "evaluations") as progress:
        begun = replace(plan, options=plan.options.model_copy(update={"population": ledger.population}))
        explore(make_strategy(space, begun), objective, ledger, plan, progress)
        evaluations = ledger.evaluations
    return conclude(ranked(evaluations, as_evaluator(objective), plan.goal), plan.goal)


def make_strategy(space: SearchSpace, plan: Plan) -> Strategy:
    """Return the strategy a plan names; InputError if it is unknown, or cannot search this space."""
    if plan.strategy not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {plan.strategy!r}")
    return STRATEGIES[plan.strategy](space, plan)


def search(
    super_adapter: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    resume: bool | None = False,
    **config: Any,
) -> Path:
    """Search the best sub-adapter on validation data; write `result.json` and the study to the folder `output`.

    The keywords are the fields of `SearchConfig`; `model` is the sparse base where it was moved. `resume` continues an
    interrupted search of the same configuration, or of one that ended without a feasible configuration, with a larger
    budget if wanted. InputError for what cannot be used.
    """
    settings, output, started = build(SearchConfig, "search", config), expanded(output), time.monotonic()
    trained = read_record(Path(super_adapter), SEARCH_SPACE, "fingerprint", "config")
    fingerprint = trained["fingerprint"]
    tied = _tied(settings, trained)
    asked = _asked(settings, fingerprint)
    resolved_precision(settings.precision, pick_device(settings.device))  # refuses what is not there before a study
    if settings.test is not None:
        check_apart(settings.data, settings.test, settings.limit)
    with working_folder(output, asked, resume=resume, defaults=SearchConfig.defaults()) as work:
        adapter = load_super_adapter(super_adapter, model, settings.weights, settings.device)
        validation = open_validation(adapter, settings, tied)
        measured = _measured_at_the_end(settings, adapter, validation)
        about = {"super_adapter": fingerprint, "data": validation.fingerprint}
        place = place_of(settings, work, _study_name(output, asked), about, bool(resume))
        plan = replace(_plan(settings), predicted=_predicted(settings, validation, tied))
        with dropped_if_unused(work):
            result = run_search(tied.space, validation.evaluator, plan, place).expanded(tied.expand)
        record = {
            "shears_version": __version__,
            "config": as_data(settings),
            "super_adapter_fingerprint": fingerprint,
            "data_fingerprint": validation.fingerprint,
            "data_sha256": source_fingerprint(settings.data),
            "objectives": list(plan.goal.objectives),
            "constraints": list(map(str, plan.goal.constraints)),
            **result.as_data(),
            **_race(settings, validation, result.evaluations),
            **_gain(settings, adapter, measured, result),
        }
        write_json(work / RESULT, record)
        forget_name(work)
    figures = ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value:,}"
        for name, value in result.chosen.metrics.items()
    )
    logger.info("%d configurations evaluated in %.0f s, chosen: %s", len(result.evaluations),
                time.monotonic() - started, figures)  # fmt: skip
    return output


def _tied(settings: SearchConfig, trained: dict[str, Any]) -> TiedSpace:
    """Return the space to search; InputError, before a model is loaded, where the strategy cannot search it."""
    tied = tie_layers(space_of_record(trained), settings.tie_layers)
    make_strategy(tied.space, _plan(settings))
    return tied


def _predicted(settings: SearchConfig, validation: Validation, tied: TiedSpace) -> Callable[[RankConfig], float] | None:
    """Return what orders neighbours where that is asked for; InputError where nothing predicts them."""
    if settings.order != "predicted":
        return None
    predictor = validation.qualities[settings.objectives[0]].predictor()
    if predictor is None:
        raise InputError(
            "order must be random with a sparse adapter, DoRA or adapters of experts, of which no slopes are had; got "
            "predicted"
        )
    return lambda ranks: predictor(tied.expand(ranks))


def _race(settings: SearchConfig, validation: Validation, evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    """Return what racing saved, nothing where there was no race."""
    quality = validation.qualities.get(settings.objectives[0])
    if quality is None or quality.race is None:
        return {}
    return {"race": race_report(evaluations, quality.num_examples, quality.race)}


def _measured_at_the_end(
    settings: SearchConfig, adapter: SuperAdapter, validation: Validation
) -> tuple[GaugedEvaluator, GaugedEvaluator] | None:
    """Return what measures the gain on validation and on test examples; None without a test.

    It is opened before the search, so that examples that cannot be measured are refused before it and not behind it.
    """
    if settings.test is None:
        return None
    quality = ACCURACY.quality if settings.task else LOSS.quality
    test = open_test(adapter, settings, quality, settings.test, validation.trained)
    own = validation.qualities.get(quality)
    return own or open_whole(adapter, settings, quality, settings.data, settings.limit), test


def _gain(
    settings: SearchConfig, adapter: SuperAdapter, measured: tuple[GaugedEvaluator, GaugedEvaluator] | None,
    result: SearchResult,
) -> dict[str, Any]:  # fmt: skip
    """Return what the choice is worth on the test examples, nothing where there are none."""
    if settings.test is None or measured is None:
        return {}
    seen, test = measured
    pair = result.chosen.ranks, adapter.elastic.space.heuristic()
    report = gain_report(test.quality, seen, test, pair, len(result.evaluations))
    return {"test_sha256": source_fingerprint(settings.test), "gain": report}


def _asked(settings: SearchConfig, fingerprint: str) -> dict[str, Any]:
    """Return what names the search: not its budgets, which may grow, nor options that came later and are not used.

    So a search that was interrupted before there were such options is found again.
    """
    asked = {"super_adapter_fingerprint": fingerprint, **as_data(settings)}
    unused = {name for name in LATER if getattr(settings, name) == SearchConfig.model_fields[name].default}
    return {key: value for key, value in asked.items() if key not in unused.union(WITHOUT_EFFECT)}


def _plan(settings: SearchConfig) -> Plan:
    goal = Goal(settings.objectives, settings.constraints)
    return Plan(settings.strategy, settings.max_evaluations, settings.seed, goal, settings.options)


def _study_name(output: Path, asked: Mapping[str, Any]) -> str:
    """Name the study after the search, for a storage may be shared by many."""
    return f"{output.name}-{digest(json.dumps(asked, sort_keys=True))[:12]}"
