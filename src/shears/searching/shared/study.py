"""The study of a search: where it is kept, whose it is, and its state as one worker sees it.

A worker claims configurations, evaluates them and writes their figures. A claim is one Optuna
trial. It is created with all its parameters, RUNNING; it ends COMPLETE with its figures, FAIL if it
was abandoned or withdrawn, and is PRUNED from the start if a known configuration was proposed
again.
"""

import itertools
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.config.evaluate import longest_answer
from shears.config.search import StrategyOptions
from shears.errors import InputError
from shears.records.artifacts import write_text
from shears.records.folders import WORKER
from shears.searching.shared.claims import Claim, ClaimState, StaleClaims, StudyState
from shears.searching.shared.storage import RetryingStorage, distributions, open_storage, quiet_optuna
from shears.searching.strategies.base import PARAMETERS, Evaluated, SearchPlan, digest

logger = logging.getLogger(__name__)
STUDY = "study.db"
STUDY_NAME = "search"  # of a study in a file of its own
IDENTITY = "shears"  # the study attribute that names the search it belongs to
OPTIONS = "way"  # its entry with the strategy's options
POPULATION = "population"  # the study attribute with the size of a generation of the first budget
IDENTITY_POLLS = 50  # x 0.1 s, waiting for the study's creator
OUTAGE = 5  # x stale_after, how long a storage that does not answer is retried
WORKER_KEY = "shears:worker"  # attributes of a trial: who claimed it,
HEARTBEAT_KEY = "shears:beat"  # a count that rises while it is evaluated,
WITHDRAWN_KEY = "shears:withdrawn"  # and whether it counts for nothing
ESTIMATED = "examples"  # a figure of estimates by races, which were removed: measured again
HEARTBEATS = 6  # in the time after which a worker without one is given up


@dataclass(frozen=True)
class StudyLocation:
    """Where evaluations are kept: a storage URL (None: in memory) and the study's name there.

    `resume` allows a study that has evaluations; its `identity`, what figures depend on, must then
    be the same. A `worker` has a unique name and shares the study; without a name, this process is
    alone. `stale_after` is the time in seconds after which a silent worker is given up; a storage
    that does not answer is retried for OUTAGE times as long.
    """

    url: str | None = None
    name: str = STUDY_NAME
    resume: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)
    worker: str = ""
    stale_after: float = SearchConfig.model_fields["stale_after"].default


def location_of(settings: SearchConfig, work: Path, about: Mapping[str, str], resume: bool) -> StudyLocation:
    """Return where the search that works in the folder `work` keeps its study.

    `about` are the fingerprints of `super_adapter` and `data`. Alone, the study is the only one of
    a file in that folder. In a storage that others share, it is called as the settings say, else
    after the super-adapter: a worker with other settings is then refused, and does not begin a
    study of its own.
    """
    if settings.storage is None:
        return StudyLocation(_own_url(work), _own_name(work), resume, {"data": about["data"]})
    worker = work / WORKER  # kept in the folder: a search resumed there is the same worker
    if not worker.exists():
        write_text(worker, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    scoring: dict[str, str] = {"precision": settings.precision}
    if settings.task:
        scoring |= {
            "task": str(settings.task),
            "max_new_tokens": str(settings.max_new_tokens or longest_answer(settings.task, None)),
        }
    return StudyLocation(
        settings.storage,
        settings.study or f"search-{about['super_adapter'][:12]}",
        resume,
        {**about, **scoring},
        worker.read_text(encoding="utf-8"),
        settings.stale_after,
    )


def _own_url(work: Path) -> str:
    return URL.create("sqlite", database=str(work.resolve() / STUDY)).render_as_string(hide_password=False)


def _own_name(work: Path) -> str:
    """Return the name of the study in the folder `work`, whatever an earlier version called it."""
    if not (work / STUDY).is_file():
        return STUDY_NAME
    with open_storage(_own_url(work)) as storage:
        return next((study.study_name for study in storage.get_all_studies()), STUDY_NAME)


@contextmanager
def deleted_if_unused(work: Path) -> Iterator[None]:
    """Delete the study in the folder `work` if its search is refused before it evaluates anything."""
    try:
        yield
    except InputError:
        with suppress(InputError):  # a file that is not a study stays
            if (work / STUDY).is_file() and not _is_used(work):
                for path in work.glob(f"{STUDY}*"):
                    path.unlink()
        raise


def _is_used(work: Path) -> bool:
    with open_storage(_own_url(work)) as storage:
        ids = [study._study_id for study in storage.get_all_studies()]
        return any(storage.get_n_trials(each, (TrialState.COMPLETE,)) for each in ids)


@contextmanager
def open_study(space: SearchSpace, plan: SearchPlan, location: StudyLocation) -> "Iterator[SearchStudy]":
    """Yield the study of a new, joined or resumed search; its storage is closed afterwards.

    InputError if the storage cannot be opened, the study has evaluations but `resume` is not set,
    or it belongs to another search. OSError if the storage does not answer for too long.
    """
    with open_storage(location.url) as backend:
        timeout = OUTAGE * location.stale_after
        storage = RetryingStorage(backend, location.url or "in memory", timeout)
        study_id = _join(storage, plan, location, {**location.identity, **_identity(space, plan)})
        begun_with = storage.get_study_user_attrs(study_id).get(POPULATION, plan.population)
        begun = replace(plan, begun_with=begun_with)
        yield SearchStudy(storage, study_id, space, begun, location.worker, location.stale_after)


def _join(storage: RetryingStorage, plan: SearchPlan, location: StudyLocation, identity: Mapping[str, Any]) -> int:
    """Return the number of the study in its storage, made now or before."""
    directions = [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in plan.goal.is_maximised]
    try:
        with quiet_optuna():
            study_id: int = storage.create_new_study(directions, location.name)
    except DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(location.name)
        before = _identity_of(storage, study_id, location)
        if before == identity:
            return study_id
        if before is not None:
            keys = sorted({*before, *identity})
            changed = [key for key in keys if before.get(key) != identity.get(key)]
            differ = "differs" if len(changed) == 1 else "differ"
            advice = "another with --study" if location.worker else "another output or delete it"
            raise InputError(
                f"the study {location.name!r} must be of this search, and its {', '.join(changed)} "
                f"{differ}; name {advice}"
            ) from None
    storage.set_study_user_attr(study_id, POPULATION, plan.population)
    # last, because other workers wait for it
    storage.set_study_user_attr(study_id, IDENTITY, dict(identity))
    return study_id


def _identity_of(storage: RetryingStorage, study_id: int, location: StudyLocation) -> Mapping[str, Any] | None:
    """Return the identity of a study; None if its creator died before writing it."""
    if not location.resume and storage.get_all_trials(study_id, deepcopy=False):
        raise InputError(
            f"the study {location.name!r} must be new, and it has evaluations; join it with --resume, or name another"
        )
    for _ in range(IDENTITY_POLLS if location.worker else 1):
        identity: Mapping[str, Any] | None = storage.get_study_user_attrs(study_id).get(IDENTITY)
        if identity is not None:
            return _with_options(identity, json.loads(identity.get(OPTIONS, "{}")))
        time.sleep(0.1)
    return None


def _identity(space: SearchSpace, plan: SearchPlan) -> dict[str, Any]:
    """Return what the proposals depend on; goal and options only if they are not the default."""
    ranks = json.dumps({group: list(ranks) for group, ranks in space.ranks.items()})
    identity = {
        "strategy": plan.strategy, "seed": plan.seed, "quality": plan.goal.quality, "space": digest(ranks)[:16],
    }  # fmt: skip
    goal = [*plan.goal.objectives, *map(str, plan.goal.constraints)]
    if goal != [plan.goal.quality, PARAMETERS]:
        identity["goal"] = " ".join(goal)
    return _with_options(identity, plan.options.model_dump(mode="json", exclude_defaults=True))


def _with_options(identity: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with those of the options that exist; a study may name removed ones."""
    known = {name: value for name, value in options.items() if name in StrategyOptions.model_fields}
    without = {key: value for key, value in identity.items() if key != OPTIONS}
    return {**without, OPTIONS: json.dumps(known, sort_keys=True)} if known else without


class SearchStudy:
    """The state of a study, kept in memory and in its storage; made by `open_study`.

    A worker without a name is alone: it reads the storage once. Others read it before every
    proposal and after every claim. `stale_after` is in seconds.
    """

    def __init__(
        self,
        storage: RetryingStorage,
        study_id: int,
        space: SearchSpace,
        plan: SearchPlan,
        worker: str,
        stale_after: float,
    ) -> None:
        self.space = space
        self.plan = plan
        self._storage = storage
        self._id = study_id
        self._worker = worker
        self._stale_after = stale_after
        self._stale_claims = StaleClaims(stale_after)
        self._outages = 0
        self._finished: dict[int, Claim] = {}  # by trial, so that each is converted once
        self._read()

    def refresh(self) -> None:
        """Read what other workers did; call it while this worker evaluates nothing."""
        if self._worker or self.state.pending:
            self._read()

    def wait(self) -> None:
        """Wait a moment for what other workers evaluate."""
        time.sleep(min(1.0, self._stale_after / HEARTBEATS))

    def _read(self) -> None:
        claims = self._claims()
        if self._abandon([claim for claim in claims if claim.state is ClaimState.RUNNING]):
            claims = self._claims()
        self.state = StudyState.of(self.plan.goal, claims)

    def _claims(self) -> list[Claim]:
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return [self._finished.get(trial._trial_id) or self._claim_of(trial) for trial in trials]

    def _claim_of(self, trial: FrozenTrial) -> Claim:
        trial_id: int = trial._trial_id
        if trial.state is TrialState.WAITING:  # queued by another tool, it has no parameters
            return Claim(trial_id, RankConfig({}), ClaimState.WITHDRAWN)
        state = ClaimState(trial.state.name)
        if WITHDRAWN_KEY in trial.system_attrs:
            state = ClaimState.WITHDRAWN
        elif ESTIMATED in trial.user_attrs and not self._worker:  # a race had one worker
            state = ClaimState.ABANDONED
        claim = Claim(
            trial_id,
            self.space.check(trial.params),
            state,
            trial.system_attrs.get(WORKER_KEY, ""),
            trial.system_attrs.get(HEARTBEAT_KEY, 0),
            dict(sorted(trial.user_attrs.items())),
        )
        if trial.state.is_finished():
            self._finished[trial_id] = claim
        return claim

    def _abandon(self, running: Sequence[Claim]) -> bool:
        """Fail what this worker had claimed before a restart, and stale claims; tell whether any was."""
        if self._outages != self._storage.outages:
            self._outages = self._storage.outages
            self._stale_claims.reset()
        own = [claim for claim in running if claim.worker == self._worker]
        others = [claim for claim in running if claim.worker != self._worker]
        stale = self._stale_claims.find(others, time.monotonic())
        for claim in stale:
            logger.warning(
                "worker %s gave no sign of life for %g s; another worker evaluates its configuration",
                claim.worker, self._stale_after,
            )  # fmt: skip
        for claim in [*own, *stale]:
            self._fail(claim)
        return bool(own or stale)

    def claim(self, ranks: RankConfig, budget: int) -> bool:
        """Write a claim on a configuration; return whether this worker evaluates it now."""
        is_repeat = ranks in self.state.known or ranks in self.state.pending
        state = ClaimState.REPEAT if is_repeat else ClaimState.RUNNING
        self.state.add(self._create(ranks, state))
        if self._worker:
            self._withdraw_lost(budget)
        return self._holds(ranks)

    def _create(self, ranks: RankConfig, state: ClaimState) -> Claim:
        """Create the trial of a claim; if the connection is lost meanwhile, there may be two."""
        attributes = {WORKER_KEY: self._worker, HEARTBEAT_KEY: 0}
        template = create_trial(
            state=TrialState[state.value],
            params=dict(ranks),
            distributions=distributions(self.space),
            system_attrs={} if state is ClaimState.REPEAT else attributes,
        )
        return Claim(self._storage.create_new_trial(self._id, template), ranks, state, self._worker)

    def _withdraw_lost(self, budget: int) -> None:
        """Withdraw own claims that came second, are over budget or were written twice."""
        claims = self._claims()
        self.state = StudyState.of(self.plan.goal, claims)
        running = [claim for claim in claims if claim.state is ClaimState.RUNNING]
        own = [claim for claim in running if claim.worker == self._worker]
        lost = [claim for claim in own if self.state.holder(claim.ranks, budget) is not claim]
        for claim in lost:
            self._fail(claim, is_withdrawn=True)
        if lost:
            valid = [claim for claim in claims if claim not in lost]
            self.state = StudyState.of(self.plan.goal, valid)

    def _held(self) -> list[Claim]:
        """Return the claims under which this worker evaluates something."""
        pending = list(self.state.pending.values())  # a copy: the heartbeats' thread calls this, too
        return [claim for claim in pending if claim.worker == self._worker]

    def _holds(self, ranks: RankConfig) -> bool:
        return ranks in [claim.ranks for claim in self._held()]

    def give_back(self) -> None:
        """Withdraw all claims that this worker holds."""
        for claim in self._held():
            self._fail(claim, is_withdrawn=True)

    def _fail(self, claim: Claim, is_withdrawn: bool = False) -> None:
        """End a claim without figures."""
        with suppress(UpdateFinishedTrialError):  # see `_complete`
            if is_withdrawn:
                self._storage.set_trial_system_attr(claim.trial_id, WITHDRAWN_KEY, True)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Write heartbeats while the block evaluates what is held.

        After an error, other workers take over at once.
        """
        if not self._worker:
            yield
            return
        done = threading.Event()
        target = self._write_heartbeats
        thread = threading.Thread(target=target, args=(done,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            for claim in self._held():  # without waiting for a storage that does not answer
                self._storage.try_once("set_trial_state_values", claim.trial_id, TrialState.FAIL)
            raise
        finally:
            done.set()
            thread.join()

    def _write_heartbeats(self, done: threading.Event) -> None:
        """Write 1, 2, ... to the trials that are held, HEARTBEATS times in `stale_after` seconds."""
        for count in itertools.count(1):
            if done.wait(self._stale_after / HEARTBEATS):
                return
            for claim in self._held():
                self._storage.try_once("set_trial_system_attr", claim.trial_id, HEARTBEAT_KEY, count)

    def add(self, evaluated: Evaluated) -> None:
        """Write the figures of a configuration that this worker holds, or claims now."""
        ranks = evaluated.ranks
        if not self._holds(ranks) and not self.claim(ranks, self.space.size):
            return
        claim = self.state.pending[ranks]
        if self._complete(claim, evaluated):
            self.state.add(replace(claim, state=ClaimState.COMPLETE, metrics=evaluated.metrics))
        else:
            logger.warning(
                "other workers gave up this worker and evaluate its configuration again; raise --stale-after"
            )

    def _complete(self, claim: Claim, evaluated: Evaluated) -> bool:
        """Write the figures of a claim; return False if another worker gave it up."""
        goal = self.plan.goal
        values = goal.values(evaluated.metrics)
        constrained = create_trial(values=values, constraints=goal.excesses(evaluated.metrics))
        with suppress(UpdateFinishedTrialError):  # by another, or here before a connection was lost
            for name, value in evaluated.metrics.items():
                self._storage.set_trial_user_attr(claim.trial_id, name, value)
            for name, value in constrained.system_attrs.items():  # constraints, by Optuna's names
                self._storage.set_trial_system_attr(claim.trial_id, name, value)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, values)
        return bool(self._storage.get_trial(claim.trial_id).state is TrialState.COMPLETE)
