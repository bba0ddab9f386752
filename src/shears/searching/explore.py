"""The search loop: propose, claim, evaluate, remember."""

from collections.abc import Sequence

from shears.adapt.space import RankConfig
from shears.progress import Meter
from shears.searching.measure.evaluators import Evaluator, as_evaluator
from shears.searching.shared.ledger import Ledger
from shears.searching.strategies.base import Evaluated, Goal, Local, Objective, Plan, Strategy, is_partial, proposals

FINALISTS = 3  # of a race, measured whole at the end
MAX_REPEATS = 100  # known configurations proposed in a row: the strategy has nothing new to say


def explore(strategy: Strategy, objective: Objective | Evaluator, ledger: Ledger, plan: Plan, progress: Meter) -> None:
    """Evaluate what the strategy proposes until it ends, repeats itself, or the budget or the space is used up.

    An objective that is an evaluator is asked for as many configurations at once as it measures together and the
    strategy can name; the history is that of a search one by one. Several workers on one study each evaluate what they
    claim, and wait at the end for what others evaluate.
    """
    evaluator, best = as_evaluator(objective), _Best(plan.goal, ledger.evaluations)
    progress.skip(best.num_taken)
    budget = min(plan.max_evaluations, ledger.size)
    while len(ledger.known) < budget:
        proposed = _next(strategy, ledger, evaluator.width, budget)
        claimed = ledger.claim(proposed, budget)
        if claimed and _is_wanted(claimed, strategy, ledger, best.num_taken):
            anchor = _anchor(strategy, ledger, best)
            with ledger.evaluating():
                for evaluated in _evaluated(claimed, evaluator, anchor, plan.goal):
                    ledger.add(evaluated)
                    best.take(evaluated)
                    progress.advance(1, best.said())
        elif not proposed and not ledger.pending:
            break
        elif not proposed:
            ledger.wait()
        ledger.refresh()
        if best.num_taken != len(ledger.known):  # what others evaluated
            progress.skip(len(ledger.known) - best.num_taken)
            best = _Best(plan.goal, ledger.evaluations)


def _next(strategy: Strategy, ledger: Ledger, width: int, budget: int) -> list[RankConfig]:
    """Return what to evaluate next; nothing where there is nothing now: others are at it, or the search ends."""
    if left := ledger.to_retry(budget):
        return left[:width]
    told = ledger.told
    if ledger.num_places >= budget or ledger.num_repeats >= MAX_REPEATS or (ledger.pending and not told):
        return []
    return proposals(strategy, told, min(width, budget - ledger.num_places))


def _is_wanted(claimed: Sequence[RankConfig], strategy: Strategy, ledger: Ledger, num_known: int) -> bool:
    """Tell whether the search goes on with what was learnt while claiming; give the claims back if it does not.

    Others may have ended their search before these claims were written; what they end with is the whole study.
    """
    if len(ledger.known) == num_known or any(map(ledger.was_abandoned, claimed)):
        return True
    is_over = ledger.num_repeats >= MAX_REPEATS or not proposals(strategy, ledger.told_by_others, 1)
    if is_over:
        ledger.give_back()
    return not is_over


def _evaluated(
    claimed: Sequence[RankConfig], evaluator: Evaluator, anchor: Evaluated | None, goal: Goal
) -> list[Evaluated]:
    """Return what is claimed with its figures."""
    if anchor is not None:
        evaluator.anchor(anchor)
    figures = evaluator.many(claimed)
    return [Evaluated(ranks, goal.check(ranks, found)) for ranks, found in zip(claimed, figures, strict=True)]


def _anchor(strategy: Strategy, ledger: Ledger, best: "_Best") -> Evaluated | None:
    """Return what the proposals are like: the strategy's incumbent, else the best; None if that was not measured."""
    incumbent = strategy.incumbent if isinstance(strategy, Local) else None
    known = ledger.known.get(incumbent) if incumbent is not None else None
    return known if known is not None and best.goal.has_figures(known.metrics) else best.measured


class _Best:
    """The best evaluation so far, and the best of those that have every figure."""

    def __init__(self, goal: Goal, evaluations: Sequence[Evaluated]) -> None:
        self.goal = goal
        self.num_taken = 0
        self.any: Evaluated | None = None
        self.measured: Evaluated | None = None
        for evaluated in evaluations:
            self.take(evaluated)

    def take(self, evaluated: Evaluated) -> None:
        """Hear of one more."""
        self.num_taken += 1
        self.any = self._better(self.any, evaluated)
        if self.goal.has_figures(evaluated.metrics):
            self.measured = self._better(self.measured, evaluated)

    def _better(self, one: Evaluated | None, other: Evaluated) -> Evaluated:
        return other if one is None else self.goal.best([one, other])

    def said(self) -> str:
        """Return the best so far in words."""
        best = self.measured or self.any
        assert best is not None
        value = best.metrics.get(self.goal.quality)
        unmet = ", constraints unmet" if self.goal.violation(best.metrics) else ""
        return f"best {self.goal.quality} {'not measured' if value is None else f'{value:.4g}'}{unmet}"


def ranked(evaluations: Sequence[Evaluated], evaluator: Evaluator, goal: Goal) -> list[Evaluated]:
    """Return the evaluations with the best FINALISTS measured on all examples, where a race only estimated them."""
    order = sorted(goal.feasible(evaluations), key=lambda evaluated: goal.key(evaluated.metrics))
    finalists = {evaluated.ranks for evaluated in order[:FINALISTS] if is_partial(evaluated.metrics)}
    return [
        Evaluated(each.ranks, goal.check(each.ranks, evaluator(each.ranks))) if each.ranks in finalists else each
        for each in evaluations
    ]
