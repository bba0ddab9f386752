"""Sub-adapter search: on any objective (`run_search`), and as the stage that writes `result.json` (`search`)."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import URL

from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.adapt.space import SearchSpace
from shears.artifacts import (
    RESULT,
    SEARCH_SPACE,
    as_data,
    read_record,
    working_folder,
    write_json,
)
from shears.data.examples import load_examples, tokenize_all
from shears.data.fingerprints import rows_fingerprint
from shears.errors import InputError
from shears.progress import meter
from shears.recipe import SearchConfig
from shears.resolve import build
from shears.searching.evolve import Nsga2
from shears.searching.heuristics import Heuristic
from shears.searching.hill_climb import HillClimbing
from shears.searching.objective import accuracy_objective, loss_objective
from shears.searching.pareto import pareto_front
from shears.searching.random_search import RandomSearch
from shears.searching.seeds import Seeds, pairs_for, propose
from shears.searching.strategy import ACCURACY, LOSS, Evaluated, Objective, Plan, Strategy, digest, opening
from shears.searching.study import Place, explore, open_ledger
from shears.version import __version__

logger = logging.getLogger(__name__)
STUDY = "study.db"
IN_MEMORY = Place()
STRATEGIES: Mapping[str, Callable[[SearchSpace, Plan], Strategy]] = MappingProxyType(
    {"heuristic": Heuristic, "hill-climbing": HillClimbing, "nsga2": Nsga2, "random": RandomSearch}
)


@dataclass(frozen=True)
class SearchResult:
    """Every configuration evaluated, once, in order; the best; the front of quality against parameters."""

    evaluations: list[Evaluated]
    chosen: Evaluated
    pareto: list[Evaluated]

    def as_data(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        return {
            "evaluations": [evaluated.as_data() for evaluated in self.evaluations],
            "chosen": self.chosen.as_data(),
            "pareto": [evaluated.as_data() for evaluated in self.pareto],
        }


def run_search(space: SearchSpace, objective: Objective, plan: Plan, place: Place = IN_MEMORY) -> SearchResult:
    """Search `space` for what `objective` calls best; any callable from RankConfig to figures will do.

    `place` names a storage in which an interrupted search can be resumed. InputError for an unknown strategy, a seed
    outside of the space, figures that are not finite, or a storage that holds something else.
    """
    if plan.strategy not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {plan.strategy!r}")
    first = len(opening(space, plan))
    budget = min(first if plan.strategy == "heuristic" else space.size, plan.max_evaluations)
    with open_ledger(space, plan, place) as ledger, meter("search", budget, "evaluations") as progress:
        explore(STRATEGIES[plan.strategy](space, plan), objective, ledger, plan, progress)
        evaluations = list(ledger.known.values())
    front = pareto_front([plan.goal.cost(evaluated.metrics) for evaluated in evaluations])
    return SearchResult(evaluations, plan.goal.best(evaluations), [evaluations[index] for index in front])


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
    interrupted search of the same configuration. InputError for what cannot be used.
    """
    settings, output, started = build(SearchConfig, "search", config), Path(output), time.monotonic()
    trained = read_record(Path(super_adapter), SEARCH_SPACE)
    fingerprint = trained["fingerprint"]
    pairs = pairs_for(settings, Path(super_adapter), trained)
    asked = _asked(settings, fingerprint)
    with working_folder(output, asked, resume=resume) as work:
        adapter = load_super_adapter(super_adapter, model, device=settings.device)
        data_fingerprint, objective = _objective(adapter, settings)
        about = {"data": data_fingerprint}
        place = Place(_study_url(work, settings), _study_name(output, asked), bool(resume), about)
        seeds = propose(pairs, adapter.elastic, settings.seeds) if pairs is not None else None
        plan = _plan(settings, seeds)
        result = run_search(adapter.elastic.space, objective, plan, place)
        record = {
            "shears_version": __version__,
            "config": as_data(settings),
            "super_adapter_fingerprint": fingerprint,
            "data_fingerprint": data_fingerprint,
            **result.as_data(),
            **({"seeds": seeds.as_data(result.evaluations, plan.goal)} if seeds else {}),
        }
        write_json(work / RESULT, record)
    logger.info("%d configurations evaluated in %.0f s, chosen: %s", len(result.evaluations),
                time.monotonic() - started, dict(result.chosen.metrics))  # fmt: skip
    return output


def _objective(adapter: SuperAdapter, settings: SearchConfig) -> tuple[str, Objective]:
    """Return the fingerprint of the validation examples and the objective on them."""
    examples = load_examples(settings.data, adapter.record["template"], adapter.tokenizer, settings.limit)
    if settings.data == adapter.record["config"]["data"]:
        logger.warning("the search sees the examples the super-adapter was trained on; give it validation data")
    if settings.objective == "accuracy":
        return digest(repr(examples)), accuracy_objective(adapter, examples, settings)
    rows = tokenize_all(examples, adapter.tokenizer, adapter.record["config"]["max_length"])
    return rows_fingerprint(rows), loss_objective(adapter, rows, settings)


def _asked(settings: SearchConfig, fingerprint: str) -> dict[str, Any]:
    """Return what names the search; without seeds as before there were any, so that its study is found again."""
    asked = {"super_adapter_fingerprint": fingerprint, **as_data(settings)}
    return asked if settings.seeds else {key: value for key, value in asked.items() if key != "seeds"}


def _plan(settings: SearchConfig, seeds: Seeds | None) -> Plan:
    goal = LOSS if settings.objective == "loss" else ACCURACY
    return Plan(settings.strategy, settings.max_evaluations, settings.seed, goal, seeds.configs if seeds else ())


def _study_url(work: Path, settings: SearchConfig) -> str:
    """Return the URL of the study: of a file in the working folder unless the configuration names a storage."""
    beside = URL.create("sqlite", database=str(work.resolve() / STUDY))
    return settings.storage or beside.render_as_string(hide_password=False)


def _study_name(output: Path, asked: Mapping[str, Any]) -> str:
    """Name the study after the search, for a storage may be shared by many."""
    return f"{output.name}-{digest(json.dumps(asked, sort_keys=True))[:12]}"
