"""Which worker evaluates which configuration: a fold over the claims on a study, in the order of its trials. Pure.

A worker claims a configuration before it evaluates it. The storage puts all claims in one order, and a worker reads
all earlier claims after it made one. So all workers agree who evaluates a configuration without talking to each other:
the first claim holds it until it is withdrawn (another claim was first) or abandoned (its worker is dead). After that
any worker may claim it again. Configurations are numbered in the order of their first claims; those beyond the budget
are not evaluated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from shears.adapt.space import RankConfig
from shears.searching.strategies.base import Evaluated, Figures, Goal


class ClaimState(Enum):
    """The states of a claim; the values are the names of the states of Optuna's trials, and one of our own."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    REPEAT = "PRUNED"  # a known configuration was proposed again; nothing is evaluated
    ABANDONED = "FAIL"  # its worker died or stopped
    WITHDRAWN = "WITHDRAWN"  # another claim was first, or it was beyond the budget


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a configuration, with the worker's last heartbeat (a count) and the figures if complete."""

    trial_id: int
    ranks: RankConfig
    state: ClaimState
    worker: str = ""
    heartbeat: int = 0
    metrics: Figures = field(default_factory=dict)


@dataclass
class StudyState:
    """The configurations of a study that are known, pending or abandoned, after some claims in their order.

    `places` numbers the configurations that count towards the budget: all of these.
    """

    goal: Goal
    known: dict[RankConfig, Evaluated] = field(default_factory=dict)
    pending: dict[RankConfig, Claim] = field(default_factory=dict)
    abandoned: set[RankConfig] = field(default_factory=set)  # at least once; they may be known by now
    places: dict[RankConfig, int] = field(default_factory=dict)
    _proposals: list[tuple[RankConfig, bool]] = field(default_factory=list)  # the bool marks repeats

    @classmethod
    def of(cls, goal: Goal, claims: Iterable[Claim]) -> "StudyState":
        """Return the state after all claims of a study."""
        state = cls(goal)
        for claim in claims:
            state.add(claim)
        return state

    def add(self, claim: Claim) -> None:
        """Add the next claim, or the later state of a claim that was added as running."""
        ranks = claim.ranks
        if claim.state is ClaimState.WITHDRAWN:
            return
        is_complete = claim.state is ClaimState.COMPLETE
        is_repeat = claim.state is ClaimState.REPEAT or (is_complete and ranks in self.known)
        if is_repeat or ranks not in self.places:
            self._proposals.append((ranks, is_repeat))
        self.places.setdefault(ranks, len(self.places))
        if claim.state is ClaimState.ABANDONED:
            self.abandoned.add(ranks)
        elif is_complete and not is_repeat:
            self.pending.pop(ranks, None)
            self.known[ranks] = Evaluated(ranks, claim.metrics)
        elif claim.state is ClaimState.RUNNING and ranks not in self.known:
            self.pending.setdefault(ranks, claim)

    @property
    def evaluations(self) -> list[Evaluated]:
        """Every evaluated configuration once, in the order of the first claims."""
        return [self.known[ranks] for ranks in self.places if ranks in self.known]

    @property
    def history(self) -> list[Evaluated]:
        """Every proposal whose figures are known, in order, repeats included."""
        return [self.known[ranks] for ranks, _ in self._proposals if ranks in self.known]

    def history_with_constant_liar(self) -> list[Evaluated]:
        """Return the history in which pending configurations have the figures of the worst known one.

        The constant liar (Ginsbourger et al., 2010): a strategy proposes something else than what is being evaluated.
        Empty as long as nothing is known.
        """
        if not self.pending or not self.known:
            return self.history
        worst = max(self.known.values(), key=lambda evaluated: self.goal.key(evaluated.metrics)).metrics
        lies = {ranks: Evaluated(ranks, worst) for ranks in self.pending}
        figures = {**lies, **self.known}
        return [figures[ranks] for ranks, _ in self._proposals if ranks in figures]

    @property
    def num_repeats(self) -> int:
        """Repeats since the last new proposal whose figures are known."""
        count = 0
        for ranks, is_repeat in reversed(self._proposals):
            if not is_repeat and ranks in self.known:
                break
            count += is_repeat
        return count

    def to_retry(self, budget: int) -> list[RankConfig]:
        """Return the abandoned configurations within the budget that nobody evaluates now, the first claimed first."""
        waiting = [ranks for ranks in self.abandoned if ranks not in self.known and ranks not in self.pending]
        return sorted((ranks for ranks in waiting if self.places[ranks] < budget), key=self.places.__getitem__)

    def holder(self, ranks: RankConfig, budget: int) -> Claim | None:
        """Return the claim under which a configuration is being evaluated; None if it is not, or is over budget."""
        claim = self.pending.get(ranks)
        return claim if claim is not None and self.places[ranks] < budget else None


class StaleClaims:
    """Finds claims whose heartbeat no longer changes, by the clock of this process; machines' clocks are not compared.

    `stale_after` and `now` are in seconds.
    """

    def __init__(self, stale_after: float) -> None:
        self._stale_after = stale_after
        self._last_change: dict[int, tuple[int, float]] = {}  # of each trial: heartbeat, when it was first seen

    def find(self, running: Sequence[Claim], now: float) -> list[Claim]:
        """Return those of the running claims whose heartbeat has not changed for longer than `stale_after`."""
        before = self._last_change
        self._last_change = {
            claim.trial_id: before[claim.trial_id]
            if before.get(claim.trial_id, (-1, 0.0))[0] == claim.heartbeat
            else (claim.heartbeat, now)
            for claim in running
        }
        return [claim for claim in running if now - self._last_change[claim.trial_id][1] > self._stale_after]

    def reset(self) -> None:
        """Start anew: the storage was away, so no worker could write a heartbeat."""
        self._last_change = {}
