"""Sub-adapter search: on any objective (`run_search`), and as the stage that writes `result.json` (`search`)."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shears import __version__
from shears.adapt.load import SuperAdapter, load_super_adapter, space_of_record
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.config.resolve import build
from shears.config.search import StrategyOptions
from shears.data.examples import check_rows
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import check_apart
from shears.models.devices import pick_device, resolved_precision
from shears.progress import meter
from shears.records.artifacts import RESULT, SEARCH_SPACE, as_data, read_record, write_json
from shears.records.folders import WORKER, working_folder
from shears.records.paths import expanded
from shears.searching.explore import explore, ranked
from shears.searching.held_out_gain import gain_report
from shears.searching.measure.evaluators import Evaluator, as_evaluator, race_report
from shears.searching.measure.validation import Validation, open_validation, open_whole
from shears.searching.result import SearchResult, conclude
from shears.searching.shared.location import StudyLocation, deleted_if_unused, location_of, open_study
from shears.searching.strategies.base import (
    ACCURACY,
    LOSS,
    Evaluated,
    Goal,
    Objective,
    SearchPlan,
    digest,
    make_strategy,
)
from shears.searching.tied import TiedSpace, tie_layers

logger = logging.getLogger(__name__)
IN_MEMORY = StudyLocation()
ADDED_LATER = (  # options that earlier searches did not have; see `_identifying`
    "test", "study", "columns", "constraint", "tie_layers", "race_error", "race_indifference", "backend",
    *StrategyOptions.model_fields,
)  # fmt: skip
WITHOUT_EFFECT = ("max_evaluations", "cache_budget", "stale_after", "storage_timeout")  # on proposals and figures
NUM_PROPOSALS = {"heuristic": 1, "maximal": 2, "minimal": 2}  # of the strategies that do not search


def run_search(
    space: SearchSpace, objective: Objective | Evaluator, plan: SearchPlan, location: StudyLocation = IN_MEMORY
) -> SearchResult:
    """Search `space` for the best configuration by an `objective`, any callable from RankConfig to figures.

    `location` names a storage in which an interrupted search can be resumed. InputError for an unknown strategy,
    figures that are not finite, a storage that holds another search, or if no evaluated configuration meets the goal's
    constraints.
    """
    make_strategy(space, plan)  # refuses a space that it cannot search before there is a study
    budget = min(NUM_PROPOSALS.get(plan.strategy, space.size), space.size, plan.max_evaluations)
    with open_study(space, plan, location) as study, meter("search", budget, "evaluations") as progress:
        explore(make_strategy(space, study.plan), objective, study, progress)
        evaluations = study.state.evaluations
    return conclude(ranked(evaluations, as_evaluator(objective), plan.goal), plan.goal)


def search(
    super_adapter: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    resume: bool | None = False,
    **config: Any,
) -> Path:
    """Search the best sub-adapter on validation data; write `result.json` and the study to the folder `output`.

    The keywords are the fields of `SearchConfig`; `model` is the sparse base if it was moved. `resume` continues an
    interrupted search of the same configuration, or one that ended without a feasible configuration, with a larger
    budget if wanted. InputError for an input that cannot be used.
    """
    settings = build(SearchConfig, "search", config)
    output = expanded(output)
    start = time.monotonic()
    record = read_record(Path(super_adapter), SEARCH_SPACE, "fingerprint", "config")
    fingerprint = record["fingerprint"]
    tied = tie_layers(space_of_record(record), settings.tie_layers)
    make_strategy(tied.space, _plan(settings))  # this line and the next refuse before a model is loaded
    resolved_precision(settings.precision, pick_device(settings.device))
    if settings.test is not None:
        check_apart(settings.data, settings.test, settings.limit, columns=(settings.columns, settings.columns))
        check_rows(settings.test, settings.columns)
    check_rows(settings.data, settings.columns, settings.limit)
    identity = _identifying(settings, fingerprint)
    with working_folder(output, identity, resume=resume, kind=SearchConfig) as work:
        adapter = load_super_adapter(super_adapter, model, settings.weights, settings.device)
        validation = open_validation(adapter, settings, tied)
        gain = _open_gain(settings, adapter, validation)
        name = f"{output.name}-{digest(json.dumps(identity, sort_keys=True))[:12]}"  # searches differ in one storage
        about = {"super_adapter": fingerprint, "data": validation.fingerprint}
        location = location_of(settings, work, name, about, bool(resume))
        plan = replace(_plan(settings), predicted=_predicted(settings, validation, tied))
        with deleted_if_unused(work):
            result = run_search(tied.space, validation.evaluator, plan, location).expanded(tied.expand)
        content = {
            "shears_version": __version__,
            "config": as_data(settings),
            "super_adapter_fingerprint": fingerprint,
            "data_fingerprint": validation.fingerprint,
            "data_sha256": source_fingerprint(settings.data),
            "objectives": list(plan.goal.objectives),
            "constraints": list(map(str, plan.goal.constraints)),
            **result.as_data(),
            **_race(settings, validation, result.evaluations),
            **gain(result),
        }
        write_json(work / RESULT, content)
        (work / WORKER).unlink(missing_ok=True)  # the name of a worker that has work left
    _log(result, time.monotonic() - start)
    return output


def _log(result: SearchResult, seconds: float) -> None:
    figures = ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value:,}"
        for name, value in result.chosen.metrics.items()
    )
    logger.info("%d configurations evaluated in %.0f s, chosen: %s", len(result.evaluations), seconds, figures)


def _plan(settings: SearchConfig) -> SearchPlan:
    goal = Goal(settings.objectives, settings.constraints)
    return SearchPlan(settings.strategy, settings.max_evaluations, settings.seed, goal, settings.options)


def _predicted(settings: SearchConfig, validation: Validation, tied: TiedSpace) -> Callable[[RankConfig], float] | None:
    """Return the predictions that order neighbours, if the settings ask for them; InputError if there are none."""
    if settings.order != "predicted":
        return None
    predictor = validation.qualities[settings.objectives[0]].predictor()
    if predictor is None:
        raise InputError(
            "order must be random with a sparse adapter, DoRA or adapters of experts, whose losses have no slopes; got "
            "predicted"
        )
    return lambda ranks: predictor(tied.expand(ranks))


def _race(settings: SearchConfig, validation: Validation, evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    """Return the record of what racing saved, nothing without a race."""
    quality = validation.qualities.get(settings.objectives[0])
    if quality is None or quality.race is None:
        return {}
    return {"race": race_report(evaluations, len(quality.weights), quality.race)}


def _open_gain(
    settings: SearchConfig, adapter: SuperAdapter, validation: Validation
) -> Callable[[SearchResult], dict[str, Any]]:
    """Return a function from a result to the record of its held-out gain, which is empty without a test.

    The evaluators are opened here, so that examples that cannot be measured are refused before the search.
    """
    test_data = settings.test
    if test_data is None:
        return lambda result: {}
    quality = ACCURACY.quality if settings.task else LOSS.quality
    test = open_whole(adapter, settings, quality, test_data, trained=validation.trained)
    own = validation.qualities.get(quality) or open_whole(adapter, settings, quality, settings.data, settings.limit)

    def record(result: SearchResult) -> dict[str, Any]:
        heuristic = adapter.elastic.space.heuristic()
        report = gain_report(own, test, result.chosen.ranks, heuristic, len(result.evaluations))
        return {"test_sha256": source_fingerprint(test_data), "gain": report}

    return record


def _identifying(settings: SearchConfig, fingerprint: str) -> dict[str, Any]:
    """Return the settings that identify a search: without budgets, which may grow, and options that are not used.

    So a search that was interrupted before an option was added is found again.
    """
    identity = {"super_adapter_fingerprint": fingerprint, **as_data(settings)}
    unused = {name for name in ADDED_LATER if getattr(settings, name) == SearchConfig.model_fields[name].default}
    return {key: value for key, value in identity.items() if key not in unused.union(WITHOUT_EFFECT)}
