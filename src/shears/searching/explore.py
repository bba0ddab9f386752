"""The search loop: propose, claim, evaluate, write."""

from collections.abc import Sequence

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import NUM_PROPOSALS
from shears.progress import Meter, meter
from shears.searching.measure.evaluators import Evaluator, as_evaluator
from shears.searching.result import SearchResult, conclude
from shears.searching.shared.study import SearchStudy, StudyLocation, open_study
from shears.searching.strategies.base import Evaluated, Goal, Objective, SearchPlan, Strategy, make_strategy

IN_MEMORY = StudyLocation()
MAX_REPEATS = 100  # known configurations proposed in a row, after which the search ends


def run_search(
    space: SearchSpace, objective: Objective | Evaluator, plan: SearchPlan, location: StudyLocation = IN_MEMORY
) -> SearchResult:
    """Search `space` for the best configuration by an `objective`, any function of a RankConfig.

    `location` names a storage in which an interrupted search can be resumed. InputError for an
    unknown strategy, figures that are not finite, a storage that holds another search, or if no
    evaluated configuration meets the goal's constraints.
    """
    make_strategy(space, plan)  # refuses a space that it cannot search before there is a study
    budget = min(NUM_PROPOSALS.get(plan.strategy, space.size), space.size, plan.max_evaluations)
    with open_study(space, plan, location) as study, meter("search", budget, "evaluations") as progress:
        explore(make_strategy(space, study.plan), objective, study, progress)
        return conclude(study.state.evaluations, plan.goal)


def explore(strategy: Strategy, objective: Objective | Evaluator, study: SearchStudy, progress: Meter) -> None:
    """Evaluate what the strategy proposes.

    The search ends when the strategy does, when it repeats itself, or when the budget or the space
    is used up. Several workers on one study each evaluate what they claim, and wait at the end for
    what others evaluate.
    """
    evaluator = as_evaluator(objective)
    goal = study.plan.goal
    best = _best(goal, study.state.evaluations)
    count = len(study.state.known)
    progress.skip(count)
    budget = min(study.plan.max_evaluations, study.space.size)
    while len(study.state.known) < budget:
        proposed = _next(strategy, study, budget)
        if proposed is None:  # the state that it was made from decides, not what changed since
            if not study.state.pending:
                break
            study.wait()
        elif study.claim(proposed, budget) and _is_wanted(proposed, strategy, study, count):
            with study.evaluating():
                if (anchor := _anchor(strategy, study, best)) is not None:
                    evaluator.anchor(anchor)
                evaluated = Evaluated(proposed, goal.check(proposed, evaluator(proposed)))
                study.add(evaluated)
            best = _best(goal, [evaluated] if best is None else [best, evaluated])
            count += 1
            progress.advance(1, _described(goal, best or evaluated))
        study.refresh()
        if count != len(study.state.known):  # other workers evaluated something
            progress.skip(len(study.state.known) - count)
            count = len(study.state.known)
            best = _best(goal, study.state.evaluations)


def _next(strategy: Strategy, study: SearchStudy, budget: int) -> RankConfig | None:
    """Return what to evaluate next.

    None at the end of the search, and while only other workers have work.
    """
    state = study.state
    if abandoned := state.to_retry(budget):
        return abandoned[0]
    history = state.history_with_constant_liar()
    if len(state.places) >= budget or state.num_repeats >= MAX_REPEATS or (state.pending and not history):
        return None
    return strategy.propose(history)


def _is_wanted(claimed: RankConfig, strategy: Strategy, study: SearchStudy, num_known: int) -> bool:
    """Tell whether the search goes on with what became known while claiming.

    If it does not, give the claim back: other workers may have ended their search before this claim
    was written, and all workers end with the whole study.
    """
    state = study.state
    if len(state.known) == num_known or claimed in state.abandoned:
        return True
    # without the constant liar: two claims of the same moment would each keep the other alive
    is_over = state.num_repeats >= MAX_REPEATS or strategy.propose(state.history) is None
    if is_over:
        study.give_back()
    return not is_over


def _anchor(strategy: Strategy, study: SearchStudy, best: Evaluated | None) -> RankConfig | None:
    """Return what the proposals resemble: the strategy's incumbent, else the best one.

    None if that was not measured.
    """
    incumbent = study.state.known.get(getattr(strategy, "incumbent", None) or RankConfig({}))
    for each in (incumbent, best):
        if each is not None and study.plan.goal.is_measured(each.metrics):
            return each.ranks
    return None


def _best(goal: Goal, evaluations: Sequence[Evaluated]) -> Evaluated | None:
    """Return the best of the measured evaluations, else of all; None without any."""
    measured = [evaluated for evaluated in evaluations if goal.is_measured(evaluated.metrics)]
    return goal.best(measured or evaluations) if evaluations else None


def _described(goal: Goal, best: Evaluated) -> str:
    """Return the figure of the best evaluation so far in words."""
    value = best.metrics.get(goal.quality)
    unmet = ", constraints unmet" if goal.violation(best.metrics) else ""
    return f"best {goal.quality} {'not measured' if value is None else f'{value:.4g}'}{unmet}"
