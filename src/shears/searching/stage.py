"""`search`: the stage that searches a super-adapter's ranks and writes `result.json`."""

import logging
import time
from pathlib import Path
from typing import Any

from shears.adapt.load import load_super_adapter, space_of_record
from shears.config import SearchConfig
from shears.config.resolve import build
from shears.data.examples import check_rows
from shears.data.rows import refuse_same, source_fingerprint
from shears.evaluation.contamination import check_apart
from shears.models.devices import pick_device, resolved_precision
from shears.records.artifacts import RESULT, SEARCH_SPACE, as_data, read_record, write_json
from shears.records.folders import WORKER, working_folder
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.searching.explore import run_search
from shears.searching.held_out_gain import open_gain
from shears.searching.measure.validation import open_validation
from shears.searching.result import SearchResult
from shears.searching.shared.study import deleted_if_unused, location_of
from shears.searching.strategies.base import Goal, SearchPlan, make_strategy
from shears.searching.tied import tie_layers

logger = logging.getLogger(__name__)
WITHOUT_EFFECT = ("max_evaluations", "cache_budget", "stale_after")  # on proposals and figures


def search(
    super_adapter: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    resume: bool | None = False,
    **config: Any,
) -> Path:
    """Search the best sub-adapter on validation data; write `result.json` to the folder `output`.

    The keywords are the fields of `SearchConfig`; `model` is the sparse base if it was moved.
    `resume` continues an interrupted search of the same configuration, or one that ended without a
    feasible configuration, with a larger budget if wanted. InputError for an input that cannot be
    used.
    """
    settings = build(SearchConfig, "search", config)
    output = expanded(output)
    start = time.monotonic()
    record = read_record(Path(super_adapter), SEARCH_SPACE, "fingerprint", "config")
    fingerprint = record["fingerprint"]
    tied = tie_layers(space_of_record(record), settings.tie_layers)
    goal = Goal(settings.objectives, settings.constraints)
    plan = SearchPlan(settings.strategy, settings.max_evaluations, settings.seed, goal, settings.options)
    make_strategy(tied.space, plan)  # this line and the next refuse before a model is loaded
    resolved_precision(settings.precision, pick_device(settings.device))
    if settings.test is not None:
        refuse_same(settings.test, settings.data, "search.test must be other examples than data, which the search sees")
        check_apart(settings.data, settings.test, settings.limit, columns=(settings.columns, settings.columns))
        check_rows(settings.test, settings.columns)
    check_rows(settings.data, settings.columns, settings.limit)
    identity = _identifying(settings, fingerprint)
    with working_folder(output, identity, resume=resume, kind=SearchConfig) as work:
        adapter = load_super_adapter(super_adapter, model, settings.weights, settings.device)
        validation = open_validation(adapter, settings, tied)
        record_gain = open_gain(settings, adapter, validation)
        about = {"super_adapter": fingerprint, "data": validation.fingerprint}
        with deleted_if_unused(work):
            location = location_of(settings, work, about, bool(resume))
            result = run_search(tied.space, validation.evaluator, plan, location).expanded(tied.expand)
        content = {
            "shears_version": __version__,
            "config": as_data(settings),
            "super_adapter_fingerprint": fingerprint,
            "data_fingerprint": validation.fingerprint,
            "data_sha256": source_fingerprint(settings.data),
            "objectives": list(goal.objectives),
            "constraints": list(map(str, goal.constraints)),
            **result.as_data(),
            **record_gain(result),
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


def _identifying(settings: SearchConfig, fingerprint: str) -> dict[str, Any]:
    """Return the settings that identify a search: all but budgets, which may grow."""
    identity = {"super_adapter_fingerprint": fingerprint, **as_data(settings)}
    return {key: value for key, value in identity.items() if key not in WITHOUT_EFFECT}
