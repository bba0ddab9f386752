"""Which worker evaluates which configuration: a fold over the claims on a study in their order. Pure.

A worker claims a configuration before it evaluates it. The storage puts all claims in one order,
and a worker reads all earlier claims after it made one. So all workers agree who evaluates a
configuration: the first claim holds it until it is withdrawn (another claim was first) or abandoned
(its worker is dead). After that any worker may claim it again. Configurations are numbered in the
order of their first claims; those beyond the budget are not evaluated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from shears.adapt.space import RankConfig
from shears.searching.strategies.base import Evaluated, Figures, Goal


class ClaimState(Enum):
    """The states of a claim; the values are the states of Optuna's trials, and one of our own."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    REPEAT = "PRUNED"  # a known configuration was proposed again; nothing is evaluated
    ABANDONED = "FAIL"  # its worker died or stopped
    WITHDRAWN = "WITHDRAWN"  # another claim was first, or it was beyond the budget


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a configuration: its last heartbeat (a count), its figures if complete."""

    trial_id: int
    ranks: RankConfig
    state: ClaimState
    worker: str = ""
    heartbeat: int = 0
    metrics: Figures = field(default_factory=dict)


@dataclass
class StudyState:
    """The configurations of a study that are known, pending or abandoned after some claims.

    `places` numbers the configurations that count towards the budget: all of these.
    """

    goal: Goal
    known: dict[RankConfig, Evaluated] = field(default_factory=dict)
    pending: dict[RankConfig, Claim] = field(default_factory=dict)
    abandoned: set[RankConfig] = field(default_factory=set)  # at least once; may be known by now
    places: dict[RankConfig, int] = field(default_factory=dict)
    _proposals: list[tuple[RankConfig, bool]] = field(default_factory=list)  # True for a repeat

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
        """Return the history in which pending configurations have the worst known figures.

        With this constant liar (Ginsbourger et al., 2010), a strategy proposes something else than
        what is being evaluated. Empty as long as nothing is known.
        """
        if not self.pending or not self.known:
            return self.history
        worst = max((each.metrics for each in self.known.values()), key=self.goal.key)
        figures = {ranks: Evaluated(ranks, worst) for ranks in self.pending} | self.known
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
        """Return the abandoned configurations that nobody evaluates, in the order of their claims."""
        waiting = self.abandoned - self.known.keys() - self.pending.keys()
        within = (ranks for ranks in waiting if self.places[ranks] < budget)
        return sorted(within, key=self.places.__getitem__)

    def holder(self, ranks: RankConfig, budget: int) -> Claim | None:
        """Return the claim under which a configuration is evaluated; None if over budget."""
        claim = self.pending.get(ranks)
        return claim if claim is not None and self.places[ranks] < budget else None


class StaleClaims:
    """Finds claims whose heartbeat no longer changes, by the clock of this process alone.

    `stale_after` and `now` are in seconds.
    """

    def __init__(self, stale_after: float) -> None:
        self._stale_after = stale_after
        self._last_change: dict[int, tuple[int, float]] = {}  # heartbeat and its time, by trial

    def find(self, running: Sequence[Claim], now: float) -> list[Claim]:
        """Return the claims whose heartbeat has not changed for longer than `stale_after`."""
        before = self._last_change
        self._last_change = {
            claim.trial_id: before[claim.trial_id]
            if before.get(claim.trial_id, (-1, 0.0))[0] == claim.heartbeat
            else (claim.heartbeat, now)
            for claim in running
        }
        changed = {trial: time for trial, (_, time) in self._last_change.items()}
        return [claim for claim in running if now - changed[claim.trial_id] > self._stale_after]

    def reset(self) -> None:
        """Start anew: the storage was away, so no worker could write a heartbeat."""
        self._last_change = {}
