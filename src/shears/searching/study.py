"""`search`: find the best ranks of a super-adapter on validation data; write `result.json`."""

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.super_adapter import load_super_adapter, space_of_record
from shears.config import SearchConfig
from shears.config.resolve import build
from shears.data.examples import check_rows
from shears.data.rows import refuse_same, source_fingerprint
from shears.errors import InputError, first_line, install_hint, option
from shears.evaluation.evaluated import check_apart
from shears.models.devices import computing_dtype, pick_device
from shears.progress import meter
from shears.records.artifacts import RESULT, SEARCH_SPACE, __version__, as_data, cut_torn_line, read_record, write_json
from shears.records.folders import working_folder
from shears.records.paths import expanded
from shears.searching.objectives import open_objective, open_quality
from shears.searching.outcome import Evaluated, Figures, Goal, held_out_gain, outcome
from shears.searching.strategies import SAMPLERS, propose, sampler_of

logger = logging.getLogger(__name__)
STUDY = "study.journal"
FIGURES = "figures"  # a trial's attribute
POPULATION = "population"  # study attribute: size of a generation, kept if the budget is raised
GENERATIONS = 5  # in a small budget; Optuna's own population of 50 would make it one generation
HEARTBEAT = 60  # seconds; a worker of a shared study that is silent for twice as long is given up
MAX_REPEATS = 100  # proposals that are known already, after which a search ends
LIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
WITHOUT_EFFECT = frozenset({"max_evaluations"})  # on the order of proposals
OF_A_WORKER = WITHOUT_EFFECT | {"data", "test", "storage", "device", "batch_size"}  # may differ


def search(super_adapter: str | Path, output: str | Path, *, model: str | None = None, **config: Any) -> Path:
    """Search the best sub-adapter on validation data; write `result.json` to the folder `output`.

    The keywords are the fields of `SearchConfig`; `model` is the sparse base if it was moved.
    An interrupted search of the same configuration is continued, with a larger budget if wanted.
    InputError for an input that cannot be used.
    """
    settings = build(SearchConfig, "search", config)
    output = expanded(output)
    record = read_record(Path(super_adapter), SEARCH_SPACE, "fingerprint", "config")
    space = space_of_record(record)
    goal = Goal(settings.objectives, settings.constraints)
    _check(settings, space)
    identity = {"super_adapter_fingerprint": record["fingerprint"], "data_sha256": source_fingerprint(settings.data)}
    asked = {key: value for key, value in as_data(settings).items() if key not in WITHOUT_EFFECT}
    with working_folder(output, {**identity, **asked}) as work:
        device = pick_device(settings.device)
        dtype = settings.weights if device.type == "cpu" else computing_dtype(settings.precision, device)
        adapter = load_super_adapter(super_adapter, model, dtype, settings.device)
        objective = open_objective(adapter, settings, goal)
        quality = "accuracy" if settings.task else "loss"
        on_test = open_quality(adapter, settings, quality, settings.test) if settings.test else None
        with open_storage(settings.storage, work / STUDY) as storage:
            study = open_study(settings, storage, identity, space)
            found = outcome(explore(study, space, objective, goal, settings), goal)
        if on_test is not None:
            ranks = RankConfig(found["chosen"]["ranks"])
            heuristic = space.heuristic()
            found["test_sha256"] = source_fingerprint(str(settings.test))
            found["gain"] = held_out_gain(quality, on_test(ranks), on_test(heuristic), ranks == heuristic)
        about = {"shears_version": __version__, "config": as_data(settings), **identity}
        about |= {"objectives": list(goal.objectives), "constraints": [bound.text for bound in goal.constraints]}
        write_json(work / RESULT, {**about, **found})
    words = ", ".join(f"{name} {value:,.5g}" for name, value in found["chosen"]["metrics"].items())
    logger.info("evaluated %d configurations; the chosen one has %s", len(found["evaluations"]), words)
    return output


def _check(settings: SearchConfig, space: SearchSpace) -> None:
    if settings.strategy == "exhaustive" and settings.max_evaluations < space.size:
        raise InputError(
            f"strategy exhaustive needs max_evaluations of at least {space.size:,}, the number "
            f"of all configurations, got {settings.max_evaluations}"
        )
    if settings.test is not None:
        refuse_same(settings.test, settings.data, "search.test must be other examples than data")
        check_apart(settings.data, settings.test, settings.limit, columns=(settings.columns, settings.columns))
        check_rows(settings.test, settings.columns)
    check_rows(settings.data, settings.columns, settings.limit)


@contextmanager
def open_storage(url: str | None, journal: Path) -> Iterator[BaseStorage]:
    """Yield the database of a URL, or a journal file; OSError if the database fails.

    A trial in the database whose worker gives no sign of life is retried by another one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)  # of a killed process; the folder is locked
        if journal.is_file():
            cut_torn_line(journal)
        yield JournalStorage(JournalFileBackend(str(journal)))
        return
    with option("storage"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            storage = RDBStorage(
                url.replace("postgresql://", "postgresql+psycopg://", 1),
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        except ImportError as error:
            raise InputError(f"storage needs a driver: {first_line(error)}; {install_hint('postgresql')}") from None
    try:
        yield storage
    except StorageInternalError as error:
        reason = first_line(error.__cause__ or error)
        raise OSError(f"the storage failed: {reason}; start again when it answers") from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(settings: SearchConfig, storage: BaseStorage, identity: dict[str, Any], space: SearchSpace) -> Study:
    """Return the Optuna study of a search, named by a hash of it so that its workers share one."""
    asked = {key: value for key, value in as_data(settings).items() if key not in OF_A_WORKER}
    asked["data"] = identity.get("data_sha256") or settings.data  # file names may differ
    name = hashlib.sha256(json.dumps([identity, asked, space.as_data()], sort_keys=True).encode()).hexdigest()[:16]
    directions = ["minimize"] * len(settings.objectives)  # of costs
    study = optuna.create_study(
        storage=storage, study_name=f"search-{name}", directions=directions, load_if_exists=True
    )
    if POPULATION not in study.user_attrs:
        study.set_user_attr(POPULATION, max(min(settings.max_evaluations // GENERATIONS, 50), 4))
    if settings.storage is None:  # only this process uses the journal: what runs in it was killed
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def explore(
    study: Study, space: SearchSpace, objective: Callable[[RankConfig], Figures], goal: Goal, settings: SearchConfig
) -> list[Evaluated]:
    """Evaluate proposals until the budget or the space is used up; return all evaluations in order.

    Each proposal is a function of the study's trials, so a resumed search proposes the same. A
    repeated configuration gets the known figures. What other workers measure counts as known and
    worst (constant liar: Ginsbourger, Le Riche and Carraro, 2010): hill climbing proposes others.
    """
    budget = min(settings.budget, space.size)
    num_known = 0
    with meter("search", budget, "evaluations") as progress:
        while True:
            trials = study.get_trials(deepcopy=False, states=LIVE)
            begun = [trial for trial in trials if trial.state is not TrialState.WAITING]
            complete = [trial for trial in begun if trial.state is TrialState.COMPLETE]
            known: dict[RankConfig, Figures] = {RankConfig(each.params): each.user_attrs[FIGURES] for each in complete}
            pending = {RankConfig(trial.params) for trial in begun} - known.keys()
            if len(known) > num_known:
                progress.advance(len(known) - num_known)
            num_known = len(known)
            if num_known >= budget or len(begun) >= budget + MAX_REPEATS:
                break
            if num_known + len(pending) >= budget:  # other workers measure the last ones
                _wait(study)
                continue
            study.sampler = sampler_of(settings.strategy, settings.seed, len(begun), study.user_attrs[POPULATION])
            if len(begun) == len(trials):  # else a trial waits, proposed before a kill or retried
                keys = {ranks: goal.key(figures) for ranks, figures in known.items()}
                keys |= dict.fromkeys(pending, (math.inf,))
                proposed = propose(settings.strategy, space, settings.seed, keys, settings.budget)
                if proposed is not None:
                    study.enqueue_trial(dict(proposed))
                elif settings.strategy not in SAMPLERS:
                    break
            study.optimize(partial(_evaluated, space=space, objective=objective, goal=goal, known=known), n_trials=1)
    return list(known.items())


def _wait(study: Study) -> None:
    """Wait a second; give up the trials of workers without a heartbeat, which are then retried."""
    time.sleep(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _evaluated(
    trial: Trial,
    space: SearchSpace,
    objective: Callable[[RankConfig], Figures],
    goal: Goal,
    known: Mapping[RankConfig, Figures],
) -> tuple[float, ...]:
    ranks = RankConfig({group: trial.suggest_categorical(group, list(each)) for group, each in space.ranks.items()})
    figures = known.get(ranks) or objective(ranks)
    if not all(map(math.isfinite, figures.values())):
        raise InputError(f"every metric must be finite, got {dict(figures)} for {ranks}")
    trial.set_user_attr(FIGURES, dict(figures))
    for name, excess in goal.excesses(figures).items():
        trial.set_constraint(name, excess)
    return goal.cost(figures)
