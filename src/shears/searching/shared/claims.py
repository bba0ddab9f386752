"""Who evaluates what: the claims on a study's configurations, counted in the order in which they were made. Pure.

A worker claims a configuration before it evaluates it. The storage puts all claims in one order, and whoever made a
claim reads every earlier one: so all workers agree whose it is without asking each other. The first claim on a
configuration holds it until its worker withdraws it (another was first) or is given up for dead (then anyone may claim
it anew). Configurations have places in the order of their first claims; those beyond the budget are not evaluated.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from enum import Enum

from shears.adapt.space import RankConfig
from shears.searching.strategies.base import Evaluated, Figures, Goal


class State(Enum):
    """What became of a claim."""

    RUNNING = "running"
    COMPLETE = "complete"
    REPEAT = "repeat"  # a known configuration was proposed again; nothing is evaluated
    ABANDONED = "abandoned"  # its worker died or stopped
    WITHDRAWN = "withdrawn"  # it came second, or beyond the budget


@dataclass(frozen=True)
class Claim:
    """One claim: its number in the storage, the configuration, what became of it, whose, a sign of life, figures."""

    ident: int
    ranks: RankConfig
    state: State
    worker: str = ""
    beat: int = 0
    metrics: Figures = field(default_factory=dict)


@dataclass
class Tally:
    """What claims add up to, taken one after the other in their order.

    `known` holds what was evaluated, `pending` what is being evaluated, `abandoned` whatever lost its worker once.
    `places` numbers the configurations that count towards the budget: all of these.
    """

    goal: Goal
    known: dict[RankConfig, Evaluated] = field(default_factory=dict)
    pending: dict[RankConfig, Claim] = field(default_factory=dict)
    places: dict[RankConfig, int] = field(default_factory=dict)
    abandoned: dict[RankConfig, None] = field(default_factory=dict)
    _proposals: list[tuple[RankConfig, bool]] = field(default_factory=list)  # and whether it is a repeat

    def with_claims(self, claims: Iterable[Claim]) -> "Tally":
        """Return a tally of what is counted here and of later claims."""
        tally = Tally(self.goal, dict(self.known), dict(self.pending), dict(self.places), dict(self.abandoned),
                      list(self._proposals))  # fmt: skip
        for claim in claims:
            tally.add(claim)
        return tally

    def add(self, claim: Claim) -> None:
        """Count the next claim, or what became of one that was counted as running."""
        ranks, state = claim.ranks, claim.state
        if state is State.WITHDRAWN:
            return
        is_repeat = state is State.REPEAT or (state is State.COMPLETE and ranks in self.known)
        if is_repeat or ranks not in self.places:
            self._proposals.append((ranks, is_repeat))
        self.places.setdefault(ranks, len(self.places))
        if state is State.ABANDONED:
            self.abandoned[ranks] = None
        elif state is State.COMPLETE and not is_repeat:
            self.pending.pop(ranks, None)
            self.known[ranks] = Evaluated(ranks, claim.metrics)
        elif state is State.RUNNING and ranks not in self.known:
            self.pending.setdefault(ranks, claim)

    @property
    def evaluations(self) -> list[Evaluated]:
        """Every evaluated configuration once, in the order of the first claims."""
        return [self.known[ranks] for ranks in self.places if ranks in self.known]

    @property
    def history(self) -> list[Evaluated]:
        """Every proposal of which the figures are known, in order, repeats included."""
        return [self.known[ranks] for ranks, _ in self._proposals if ranks in self.known]

    @property
    def num_repeats(self) -> int:
        """Repeats since the last proposal that was new and whose figures are known."""
        count = 0
        for ranks, is_repeat in reversed(self._proposals):
            if not is_repeat and ranks in self.known:
                break
            count += is_repeat
        return count

    def with_lies(self, but: Container[RankConfig] = ()) -> list[Evaluated]:
        """Return the history in which what is being evaluated, `but` some of it, counts as the worst that is known.

        This is the constant liar (Ginsbourger et al., 2010): a strategy then proposes something else than
        what others evaluate, and goes on as if that led nowhere. Empty as long as nothing is known.
        """
        if not self.pending or not self.known:
            return self.history
        worst = max(self.known.values(), key=lambda evaluated: self.goal.key(evaluated.metrics)).metrics
        told = {**{ranks: Evaluated(ranks, worst) for ranks in self.pending if ranks not in but}, **self.known}
        return [told[ranks] for ranks, _ in self._proposals if ranks in told]

    def to_retry(self, budget: int) -> list[RankConfig]:
        """Return the configurations within the budget whose workers died, the first claimed first."""
        left = [ranks for ranks in self.abandoned if ranks not in self.known and ranks not in self.pending]
        return sorted((ranks for ranks in left if self.places[ranks] < budget), key=self.places.__getitem__)

    def holder(self, ranks: RankConfig, budget: int) -> Claim | None:
        """Return the claim that evaluates a configuration within the budget, None if nobody may or it is known."""
        claim = self.pending.get(ranks)
        return claim if claim is not None and self.places[ranks] < budget else None
