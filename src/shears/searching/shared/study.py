"""The study of a search as one worker sees it: it claims configurations, evaluates them and writes their figures.

A claim is one Optuna trial. It is created with all its parameters, RUNNING; it ends COMPLETE with its figures, FAIL if
it was abandoned or withdrawn, and is PRUNED from the start if a known configuration was proposed again.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.shared.claims import Claim, ClaimState, StaleClaims, StudyState
from shears.searching.shared.storage import RetryingStorage, distributions
from shears.searching.strategies.base import Evaluated, SearchPlan

logger = logging.getLogger(__name__)
WORKER_KEY = "shears:worker"  # attributes of a trial: who claimed it,
HEARTBEAT_KEY = "shears:beat"  # a count that rises while it is evaluated,
WITHDRAWN_KEY = "shears:withdrawn"  # and whether it counts for nothing
HEARTBEATS = 6  # in the time after which a worker without one is given up


class SearchStudy:
    """The state of a study, kept in memory and in its storage; made by `open_study`.

    A worker without a name is alone: it reads the storage once. Others read it before every proposal and after every
    claim. `plan` has the population that the study began with; `stale_after` is in seconds.
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
        if trial.state is TrialState.WAITING:  # queued by another tool, such as the dashboard; it has no parameters
            return Claim(trial_id, RankConfig({}), ClaimState.WITHDRAWN)
        is_withdrawn = WITHDRAWN_KEY in trial.system_attrs
        claim = Claim(
            trial_id,
            self.space.check(trial.params),
            ClaimState.WITHDRAWN if is_withdrawn else ClaimState(trial.state.name),
            trial.system_attrs.get(WORKER_KEY, ""),
            trial.system_attrs.get(HEARTBEAT_KEY, 0),
            dict(sorted(trial.user_attrs.items())),
        )
        if trial.state.is_finished():
            self._finished[trial_id] = claim
        return claim

    def _abandon(self, running: Sequence[Claim]) -> bool:
        """Give up what this worker began before it was restarted and stale claims of others; tell whether any was."""
        if self._outages != self._storage.outages:
            self._outages = self._storage.outages
            self._stale_claims.reset()
        own = [claim for claim in running if claim.worker == self._worker]
        stale = self._stale_claims.find([claim for claim in running if claim not in own], time.monotonic())
        for claim in stale:
            logger.warning(
                "worker %s gave no sign of life for %g s; another worker evaluates its configuration",
                claim.worker, self._stale_after,
            )  # fmt: skip
        for claim in [*own, *stale]:
            self._fail(claim)
        return bool(own or stale)

    def claim(self, proposed: Sequence[RankConfig], budget: int) -> list[RankConfig]:
        """Write the proposals as claims, in order, repeats too; return those that this worker is to evaluate now."""
        for ranks in proposed:
            is_repeat = ranks in self.state.known or ranks in self.state.pending
            self.state.add(self._create(ranks, ClaimState.REPEAT if is_repeat else ClaimState.RUNNING))
        if self._worker and proposed:  # a worker that proposes nothing decides with the state that it proposed from
            self._withdraw_lost(budget)
        held = {claim.ranks for claim in self._held()}
        return [ranks for ranks in dict.fromkeys(proposed) if ranks in held]

    def _create(self, ranks: RankConfig, state: ClaimState) -> Claim:
        """Create the trial of a claim; if the connection was lost meanwhile, there may be two of it."""
        template = create_trial(
            state=TrialState[state.value],
            params=dict(ranks),
            distributions=distributions(self.space),
            system_attrs={} if state is ClaimState.REPEAT else {WORKER_KEY: self._worker, HEARTBEAT_KEY: 0},
        )
        return Claim(self._storage.create_new_trial(self._id, template), ranks, state, self._worker)

    def _withdraw_lost(self, budget: int) -> None:
        """Read the order of all claims; withdraw own claims that came second, are over budget or were written twice."""
        claims = self._claims()
        self.state = StudyState.of(self.plan.goal, claims)
        own = [claim for claim in claims if claim.state is ClaimState.RUNNING and claim.worker == self._worker]
        lost = [claim for claim in own if self.state.holder(claim.ranks, budget) is not claim]
        for claim in lost:
            self._fail(claim, is_withdrawn=True)
        if lost:
            self.state = StudyState.of(self.plan.goal, (claim for claim in claims if claim not in lost))

    def _held(self) -> list[Claim]:
        """Return the claims under which this worker evaluates something."""
        return [claim for claim in list(self.state.pending.values()) if claim.worker == self._worker]

    def give_back(self) -> None:
        """Withdraw all claims that this worker holds."""
        for claim in self._held():
            self._fail(claim, is_withdrawn=True)

    def _fail(self, claim: Claim, is_withdrawn: bool = False) -> None:
        """End a claim without figures."""
        with suppress(UpdateFinishedTrialError):  # another worker ended it, or this one before a connection was lost
            if is_withdrawn:
                self._storage.set_trial_system_attr(claim.trial_id, WITHDRAWN_KEY, True)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Write heartbeats while the block evaluates what is held; after an error, other workers take over at once."""
        if not self._worker:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._write_heartbeats, args=(done,), name="heartbeat", daemon=True)
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
        """Write 1, 2, ... to the trials that are held, HEARTBEATS times in `stale_after` seconds, until it is done."""
        for count in itertools.count(1):
            if done.wait(self._stale_after / HEARTBEATS):
                return
            for claim in self._held():
                self._storage.try_once("set_trial_system_attr", claim.trial_id, HEARTBEAT_KEY, count)

    def add(self, evaluated: Evaluated) -> None:
        """Write the figures of a configuration that this worker holds, or claims now."""
        ranks = evaluated.ranks
        if ranks not in [claim.ranks for claim in self._held()] and not self.claim([ranks], self.space.size):
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
        with suppress(UpdateFinishedTrialError):  # by another worker, or by this one before a connection was lost
            for name, value in evaluated.metrics.items():
                self._storage.set_trial_user_attr(claim.trial_id, name, value)
            for name, value in constrained.system_attrs.items():  # the constraints, under Optuna's names
                self._storage.set_trial_system_attr(claim.trial_id, name, value)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, values)
        return bool(self._storage.get_trial(claim.trial_id).state is TrialState.COMPLETE)
