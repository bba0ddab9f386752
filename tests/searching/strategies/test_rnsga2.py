"""RNSGA-II: what is near the reference points lives on; pymoo is an extra."""

import sys
from statistics import mean

import pytest

from shears.adapt.space import RankConfig
from shears.config.search import Constraint
from shears.errors import InputError
from shears.searching.explore import run_search
from shears.searching.strategies.base import ACCURACY, Evaluated, Figures, Goal
from shears.searching.strategies.nsga2 import rnsga2
from tests.searching.formulas import a_plan, conflicting, make_space

SPACE = make_space(20)


def sizes(history: list[Evaluated]) -> list[float]:
    return [float(e.metrics["parameters"]) for e in history[50:]]


def test_children_come_near_the_reference_point() -> None:
    """Asked for small adapters, it tries small ones; asked for good ones, large ones."""
    pytest.importorskip("pymoo")
    objective = conflicting(SPACE)
    ends = [objective(SPACE.minimal()), objective(SPACE.maximal())]
    tried = []
    for figures in ends:
        point = f"{figures['loss']}:{figures['parameters']}"
        plan = a_plan("rnsga2", 120, begun_with=10, reference_points=(point,))
        tried.append(mean(sizes(run_search(SPACE, objective, plan).evaluations)))
    assert tried[0] < 420  # of 320 to 640
    assert tried[1] > 500


@pytest.mark.parametrize(
    "goal",
    [
        ACCURACY,
        Goal(("loss",)),
        Goal(("loss", "accuracy", "parameters")),
        Goal(("loss", "flat")),
        Goal(constraints=(Constraint("parameters", "<=", 110),)),
    ],
)
def test_one_to_three_objectives_also_flat_ones_and_bounds(goal: Goal) -> None:
    pytest.importorskip("pymoo")
    space = make_space(6)

    def objective(ranks: RankConfig) -> Figures:
        figures = conflicting(space)(ranks)
        return {**figures, "accuracy": 1 / (1 + figures["loss"]), "flat": 1.0}

    result = run_search(space, objective, a_plan("rnsga2", 60, goal=goal))
    assert len(result.evaluations) == 60
    assert goal.violation(result.chosen.metrics) == 0.0


def test_without_pymoo_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.rnsga2", None)
    with pytest.raises(InputError, match=r"pip install 'shears-llm\[rnsga2\]'"):
        rnsga2(SPACE, a_plan())


def test_a_point_of_another_shape_is_refused() -> None:
    pytest.importorskip("pymoo")
    with pytest.raises(InputError, match="must have 2 numbers joined by colons"):
        rnsga2(SPACE, a_plan(reference_points=("1:2:3",)))
