"""The search loop: the incumbent is the anchor, what breaks a bound costs nothing, when a worker ends."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import STRATEGIES, Constraint
from shears.searching.explore import _is_wanted, explore, run_search
from shears.searching.measure.evaluators import CombinedEvaluator, PlainEvaluator
from shears.searching.shared.claims import Claim, ClaimState, StudyState
from shears.searching.shared.study import StudyLocation, open_study
from shears.searching.strategies.base import Evaluated, Figures, Goal, SearchPlan, make_strategy
from tests.searching.formulas import a_plan, conflicting, counted, make_space, separable, silent

LIMIT = 6 * 24 + 8
BOUNDED = Goal(constraints=(Constraint("parameters", "<=", LIMIT),))


class Noted:
    """Measures a formula; keeps what it was asked, and the anchors."""

    def __init__(self, space: SearchSpace) -> None:
        self.asked, self.anchors = list[RankConfig](), list[RankConfig]()
        self._objective = conflicting(space)

    def __call__(self, ranks: RankConfig) -> Figures:
        self.asked.append(ranks)
        return self._objective(ranks)

    def anchor(self, ranks: RankConfig) -> None:
        self.anchors.append(ranks)


def searched(evaluator: Any, space: SearchSpace, plan: SearchPlan) -> list[Evaluated]:
    with open_study(space, plan, StudyLocation()) as study:
        explore(make_strategy(space, plan), evaluator, study, silent())
    return study.state.history


def test_the_anchor_is_the_best_so_far_and_of_a_climb_its_incumbent() -> None:
    space = make_space(6)
    for name, budget in (("random", 40), ("hill-climbing", 13)):
        plan, noted = a_plan(name, budget), Noted(space)
        history = searched(noted, space, plan)
        assert len(noted.anchors) == len(noted.asked) - 1  # the heuristic has none
        for number, (anchor, proposed) in enumerate(zip(noted.anchors, noted.asked[1:], strict=True), start=1):
            if name == "random":
                assert anchor == plan.goal.best(history[:number]).ranks
            else:
                assert proposed in list(space.neighbours(anchor))


def test_a_resumed_search_anchors_what_an_undisturbed_one_does() -> None:
    space, plan = make_space(6), a_plan("hill-climbing", 30)
    whole, resumed = Noted(space), Noted(space)
    history = searched(whole, space, plan)
    with open_study(space, plan, StudyLocation()) as study:
        for each in history[:11]:
            study.add(each)
        explore(make_strategy(space, plan), resumed, study, silent())
    assert resumed.anchors == whole.anchors[10:]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("exhaustive", "heuristic", "maximal")])
def test_what_breaks_a_bound_on_a_size_is_proposed_but_not_measured(name: str, tmp_path: Any) -> None:
    space = make_space(6)
    objective, asked = counted(conflicting(space))
    evaluator = CombinedEvaluator(
        [PlainEvaluator(objective)], lambda ranks: {"parameters": sum(ranks.values())}, BOUNDED
    )
    plan, location = a_plan(name, 20, goal=BOUNDED), StudyLocation(f"sqlite:///{tmp_path}/study.db", resume=True)
    result = run_search(space, evaluator, plan, location)
    within = [each for each in result.evaluations if sum(each.ranks.values()) <= LIMIT]
    assert asked == [each.ranks for each in within]
    assert all("loss" in each.metrics for each in within)
    assert all("loss" not in each.metrics for each in result.evaluations if each not in within)
    assert result.chosen == BOUNDED.best(within)
    assert set(result.reference) == {"loss", "parameters"}
    again = run_search(space, evaluator, plan, location)
    assert again.evaluations == result.evaluations, "as read back"
    assert len(asked) == len(within)


def test_claims_of_the_same_moment_do_not_keep_a_finished_search_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers claim while a third ends the search; each sees the other's claim, and both must be given back."""
    space = make_space(4)
    first, second, third, fourth = space.heuristic(), space.maximal(), space.minimal(), space.random(random.Random(0))
    claims = [
        Claim(0, first, ClaimState.COMPLETE, "one", metrics={"loss": 2.0, "parameters": 1}),
        Claim(1, second, ClaimState.COMPLETE, "one", metrics={"loss": 1.0, "parameters": 2}),
        Claim(2, third, ClaimState.RUNNING, "two"),
        Claim(3, fourth, ClaimState.RUNNING, "three"),
    ]
    given_back: list[RankConfig] = []

    class Climb:
        """Ends at the second configuration; a lie about another one would send it on."""

        def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
            return None if [each.ranks for each in history] == [first, second] else space.random(random.Random(1))

    with open_study(space, a_plan("hill-climbing", 9), StudyLocation()) as study:
        study.state = StudyState.of(Goal(), claims)
        monkeypatch.setattr(study, "give_back", lambda: given_back.append(third))
        assert not _is_wanted(third, Climb(), study, num_known=1)
    assert given_back == [third]


def test_a_worker_that_proposes_nothing_decides_from_the_state_that_it_proposed_from(tmp_path: Path) -> None:
    """Else it takes the end of another worker's first evaluation, in between, for the end of the search."""
    space, plan = make_space(4), a_plan("hill-climbing", 3)
    one, two = (StudyLocation(f"sqlite:///{tmp_path}/shared.db", resume=True, worker=name) for name in ("one", "two"))
    heuristic, objective = space.heuristic(), separable(space)
    with open_study(space, plan, one) as first, open_study(space, plan, two) as second:
        assert first.claim(heuristic, plan.max_evaluations)
        second.refresh()
        assert second.state.pending
        first.add(Evaluated(heuristic, objective(heuristic)))
        explore(make_strategy(space, plan), objective, second, silent())
        assert len(second.state.evaluations) == 3
