"""The search loop: propose, evaluate what is unknown, remember."""

from collections.abc import Sequence

from shears.adapt.space import RankConfig
from shears.progress import Meter
from shears.searching.evaluators import Evaluator, as_evaluator
from shears.searching.strategy import Evaluated, Goal, Local, Objective, Plan, Strategy, proposals
from shears.searching.study import Ledger

MAX_REPEATS = 100  # known configurations proposed in a row: the strategy has nothing new to say


def explore(strategy: Strategy, objective: Objective | Evaluator, ledger: Ledger, plan: Plan, progress: Meter) -> None:
    """Evaluate what the strategy proposes until it ends, repeats itself, or the budget or the space is used up.

    An objective that is an evaluator is asked for as many configurations at once as it measures together and the
    strategy can name; the history is that of a search one by one.
    """
    evaluator, best = as_evaluator(objective), _Best(plan.goal, ledger.history)
    progress.skip(len(ledger.known))
    budget = min(plan.max_evaluations, ledger.size)
    while len(ledger.known) < budget and ledger.num_repeats < MAX_REPEATS:
        proposed = proposals(strategy, ledger.history, min(evaluator.width, budget - len(ledger.known)))
        if not proposed:
            break
        anchor = _anchor(strategy, ledger, best)
        for evaluated in _evaluated(proposed, evaluator, anchor, ledger, plan.goal):
            is_new = evaluated.ranks not in ledger.known
            ledger.add(evaluated)
            if is_new:
                best.take(evaluated)
                progress.advance(1, best.said())
            if ledger.num_repeats == MAX_REPEATS:
                break


def _evaluated(
    proposed: Sequence[RankConfig], evaluator: Evaluator, anchor: RankConfig | None, ledger: Ledger, goal: Goal
) -> list[Evaluated]:
    """Return the proposals with their figures, in order; those that are known cost nothing."""
    unknown = [ranks for ranks in dict.fromkeys(proposed) if ranks not in ledger.known]
    if unknown and anchor is not None:
        evaluator.anchor(anchor)
    figures = dict(zip(unknown, evaluator.many(unknown) if unknown else (), strict=True))
    return [
        Evaluated(ranks, goal.check(ranks, figures[ranks])) if ranks in figures else ledger.known[ranks]
        for ranks in proposed
    ]


def _anchor(strategy: Strategy, ledger: Ledger, best: "_Best") -> RankConfig | None:
    """Return what the proposals are like: the strategy's incumbent, else the best; None if that was not measured."""
    incumbent = strategy.incumbent if isinstance(strategy, Local) else None
    if incumbent in ledger.known and best.goal.is_measured(ledger.known[incumbent].metrics):
        return incumbent
    return best.whole.ranks if best.whole is not None else None


class _Best:
    """The best evaluation so far, and the best of those that were measured on all examples."""

    def __init__(self, goal: Goal, history: Sequence[Evaluated]) -> None:
        self.goal = goal
        self.any: Evaluated | None = None
        self.whole: Evaluated | None = None
        for evaluated in history:
            self.take(evaluated)

    def take(self, evaluated: Evaluated) -> None:
        """Hear of one more."""
        self.any = self._better(self.any, evaluated)
        if self.goal.is_measured(evaluated.metrics):
            self.whole = self._better(self.whole, evaluated)

    def _better(self, one: Evaluated | None, other: Evaluated) -> Evaluated:
        return other if one is None else self.goal.best([one, other])

    def said(self) -> str:
        """Return the best so far in words."""
        best = self.whole or self.any
        assert best is not None
        value = best.metrics.get(self.goal.quality)
        unmet = ", constraints unmet" if self.goal.violation(best.metrics) else ""
        return f"best {self.goal.quality} {'not measured' if value is None else f'{value:.4g}'}{unmet}"
