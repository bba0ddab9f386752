"""Goals, plans and histories as values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig
from shears.config.search import Constraint
from shears.errors import InputError
from shears.searching.strategies.base import ACCURACY, LOSS, Evaluated, Figures, Goal, SearchPlan, landmarks
from tests.searching.formulas import a_plan, make_space

SPACE = make_space(1)
HEURISTIC = SPACE.heuristic()
figures = st.fixed_dictionaries(
    {"loss": st.integers(0, 3), "accuracy": st.integers(0, 3), "parameters": st.integers(0, 3)}
)


@given(st.lists(figures, min_size=1, max_size=8), st.sampled_from([LOSS, ACCURACY]))
def test_the_best_has_the_best_quality_then_the_fewest_parameters_then_came_first(
    some: list[dict[str, int]], goal: Goal
) -> None:
    history = [Evaluated(HEURISTIC, metrics) for metrics in some]
    qualities = [metrics[goal.quality] for metrics in some]
    best_quality = max(qualities) if goal.is_maximised[0] else min(qualities)
    of_best_quality = [metrics for metrics in some if metrics[goal.quality] == best_quality]
    fewest = min(metrics["parameters"] for metrics in of_best_quality)
    first = next(metrics for metrics in of_best_quality if metrics["parameters"] == fewest)
    assert goal.best(history).metrics is first


@pytest.mark.parametrize(
    "metrics",
    [{"parameters": 1}, {"loss": 1.0}, {"loss": math.nan, "parameters": 1}, {"loss": math.inf, "parameters": 1}],
)
def test_figures_that_are_missing_or_not_finite_are_refused(metrics: Figures) -> None:
    with pytest.raises(InputError, match="must return a finite"):
        LOSS.check(HEURISTIC, metrics)


def test_figures_are_kept_by_name_whole_numbers_whole() -> None:
    assert list(LOSS.check(HEURISTIC, {"parameters": 7, "loss": 0.5}).items()) == [("loss", 0.5), ("parameters", 7)]


def test_what_breaks_a_bound_need_not_be_measured_and_is_never_better() -> None:
    goal = Goal(("accuracy", "macs"), (Constraint("parameters", "<=", 10), Constraint("loss", "<=", 1)))
    unmeasured = {"macs": 7, "parameters": 11}
    assert goal.check(HEURISTIC, unmeasured) == unmeasured
    assert goal.values(unmeasured) == [-math.inf, 7]
    assert goal.cost(unmeasured) == (math.inf, 7.0)
    assert not goal.is_measured(unmeasured)
    worse = {"accuracy": 0.1, "loss": 1.0, "macs": 9, "parameters": 12}
    assert goal.is_measured(worse)
    assert goal.key(worse) > goal.key(unmeasured) > goal.key({**worse, "parameters": 9})
    with pytest.raises(InputError, match="must return a finite 'accuracy', got None"):
        goal.check(HEURISTIC, {"macs": 7, "parameters": 10})


def test_a_plan_needs_at_least_one_evaluation() -> None:
    with pytest.raises(InputError, match="max_evaluations must be at least 1, got 0"):
        a_plan(max_evaluations=0)


def test_streams_differ_by_strategy_seed_and_part() -> None:
    streams = {SearchPlan(name, 1, seed).stream(part) for name in "ab" for seed in (0, 1) for part in (0, 1)}
    assert len(streams) == 8


def test_an_evaluation_is_plain_data() -> None:
    assert Evaluated(RankConfig({"b": 2, "a": 1}), {"loss": 0.5}).as_data() == {
        "ranks": {"a": 1, "b": 2},
        "metrics": {"loss": 0.5},
    }


def test_landmarks_are_the_middle_and_both_ends() -> None:
    assert [config["layers.0.up_proj"] for config in landmarks(SPACE)] == [24, 32, 16]
