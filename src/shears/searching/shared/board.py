"""A study as a board of claims: one Optuna trial a claim, written so that every storage keeps their order.

A trial is made with all its parameters at once, RUNNING; it ends COMPLETE with its figures, FAIL where its worker died
or gave way, or is PRUNED from the start where a known configuration was proposed again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna.distributions import CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.shared.claims import Claim, State
from shears.searching.shared.patience import Patience
from shears.searching.strategies.base import Evaluated, Goal

WORKER, BEAT, WITHDRAWN = "shears:worker", "shears:beat", "shears:withdrawn"  # attributes of a trial


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """Return the space in Optuna's words: one categorical parameter a group, its values the ranks themselves."""
    return {group: CategoricalDistribution(list(ranks)) for group, ranks in space.ranks.items()}


class Board:
    """What one worker reads and writes of a study; every call is patient with the storage."""

    def __init__(self, storage: BaseStorage, study: int, space: SearchSpace, goal: Goal, patience: Patience) -> None:
        self._storage, self._study, self._space, self._goal = storage, study, space, goal
        self._distributions = distributions(space)
        self._finished: dict[int, Claim] = {}
        self.patience = patience

    def claims(self) -> list[Claim]:
        """Return every claim in order."""
        trials: Sequence[FrozenTrial] = self.patience(self._storage.get_all_trials, self._study, deepcopy=False)
        return [self._claim_of(trial) for trial in trials]

    def _claim_of(self, trial: FrozenTrial) -> Claim:
        ident: int = trial._trial_id
        if trial.state is TrialState.WAITING:  # of another's making, as by the dashboard; it has no parameters yet
            return Claim(ident, RankConfig({}), State.WITHDRAWN)
        if ident not in self._finished:
            about = trial.system_attrs
            claim = Claim(ident, self._space.check(trial.params), _state(trial), about.get(WORKER, ""),
                          about.get(BEAT, 0), dict(sorted(trial.user_attrs.items())))  # fmt: skip
            if not trial.state.is_finished():
                return claim
            self._finished[ident] = claim
        return self._finished[ident]

    def claim(self, ranks: RankConfig, worker: str) -> Claim:
        """Write a claim and return it; where the storage was away, it may be there twice."""
        return self._create(ranks, TrialState.RUNNING, {WORKER: worker, BEAT: 0})

    def repeat(self, ranks: RankConfig) -> Claim:
        """Write that a configuration was proposed again."""
        return self._create(ranks, TrialState.PRUNED, {})

    def _create(self, ranks: RankConfig, state: TrialState, about: Mapping[str, object]) -> Claim:
        template = create_trial(
            state=state, params=dict(ranks), distributions=dict(self._distributions), system_attrs=dict(about)
        )
        ident: int = self.patience(self._storage.create_new_trial, self._study, template)
        return Claim(ident, ranks, _state(template), str(about.get(WORKER, "")))

    def beat(self, claim: Claim, count: int) -> None:
        """Give a sign of life, if the storage answers and the claim is still ours."""
        with suppress(UpdateFinishedTrialError):  # given up by others: `finish` will tell
            self.patience.once(self._storage.set_trial_system_attr, claim.ident, BEAT, count)

    def finish(self, claim: Claim, evaluated: Evaluated) -> bool:
        """Write the figures of a claim; False if others gave it up in the meantime."""
        storage, ident, values = self._storage, claim.ident, self._goal.values(evaluated.metrics)
        whole = create_trial(
            values=values, user_attrs=dict(evaluated.metrics), constraints=self._goal.excesses(evaluated.metrics)
        )
        with suppress(UpdateFinishedTrialError):  # by others, or by ourselves before the storage went away
            for name, value in whole.user_attrs.items():
                self.patience(storage.set_trial_user_attr, ident, name, value)
            for name, value in whole.system_attrs.items():  # the constraints, under Optuna's names
                self.patience(storage.set_trial_system_attr, ident, name, value)
            self.patience(storage.set_trial_state_values, ident, TrialState.COMPLETE, values)
        return bool(self.patience(storage.get_trial, ident).state is TrialState.COMPLETE)

    def abandon(self, claim: Claim) -> bool:
        """Give a claim up for others to evaluate; False if it ended before."""
        try:
            return bool(self.patience(self._storage.set_trial_state_values, claim.ident, TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False

    def drop(self, claim: Claim) -> None:
        """Give a claim up on the way out, without waiting for a storage that does not answer."""
        with suppress(UpdateFinishedTrialError):
            self.patience.once(self._storage.set_trial_state_values, claim.ident, TrialState.FAIL)

    def withdraw(self, claim: Claim) -> None:
        """Take a claim back that counts for nothing."""
        with suppress(UpdateFinishedTrialError):  # given up by others
            self.patience(self._storage.set_trial_system_attr, claim.ident, WITHDRAWN, True)
            self.patience(self._storage.set_trial_state_values, claim.ident, TrialState.FAIL)


def _state(trial: FrozenTrial) -> State:
    if WITHDRAWN in trial.system_attrs:
        return State.WITHDRAWN
    return {
        TrialState.RUNNING: State.RUNNING,
        TrialState.COMPLETE: State.COMPLETE,
        TrialState.PRUNED: State.REPEAT,
        TrialState.FAIL: State.ABANDONED,
    }[trial.state]
