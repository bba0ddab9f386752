"""Objectives and constraints: read as people write them, ordered by Deb's rule, kept by every strategy."""

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.config.resolve import build
from shears.config.search import STRATEGIES, Constraint, parse_constraint, parse_number
from shears.errors import InputError
from shears.searching.explore import run_search
from shears.searching.shared.study import StudyLocation
from shears.searching.strategies.base import LOSS, Evaluated, Figures, Goal
from shears.searching.strategies.nsga2 import Nsga2
from tests.searching.formulas import a_plan, climb, conflicting, make_space
from tests.searching.shared.test_study import refuse, url_of

SIX = make_space(6)
THREE = Goal(("accuracy", "loss", "parameters"), (Constraint("parameters", "<=", 100), Constraint("loss", "<=", 0.5)))
figures = st.fixed_dictionaries(
    {"loss": st.sampled_from([0.25, 0.5, 0.75]), "accuracy": st.integers(0, 2), "parameters": st.integers(50, 150)}
)


def config(**fields: Any) -> SearchConfig:
    return build(SearchConfig, "search", {"data": "x.jsonl", **fields})


@pytest.mark.parametrize(
    ("text", "number"),
    [("3M", 3e6), ("1.5e6", 1.5e6), ("0.5", 0.5), ("-2k", -2000.0), (" 7 K ", 7000.0), ("2.5G", 2.5e9), (".5T", 5e11)],
)
def test_sizes_are_read_as_people_write_them(text: str, number: float) -> None:
    assert parse_number(text) == number


@given(st.sampled_from(["loss", "parameters"]), st.sampled_from(["<=", ">="]), st.integers(1, 10**11))
def test_a_constraint_is_read_back_from_its_text(figure: str, relation: Any, limit: int) -> None:
    constraint = Constraint(figure, relation, float(limit))
    assert parse_constraint(str(constraint)) == constraint
    assert str(parse_constraint("parameters <= 3000000")) == "parameters<=3M"


def test_an_excess_is_a_share_of_the_limit() -> None:
    assert parse_constraint("parameters<=2M").excess(3e6) == 0.5
    assert parse_constraint("accuracy>=0.5").excess(0.75) == -0.5
    assert parse_constraint("loss<=0").excess(0.25) == 0.25


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"objective": "speed"}, "search.objective must be of loss, accuracy, .*, got 'speed'"),
        ({"objective": "latency"}, "search.objective must include loss or accuracy"),
        ({"objective": "loss,loss"}, "search.objective must name one to three distinct figures, got loss,loss"),
        ({"objective": ""}, "search.objective must name one to three distinct figures, got none"),
        ({"objective": "loss,parameters,macs,nonzeros"}, "search.objective must name one to three"),
        ({"objective": "parameters"}, "search.objective must include loss or accuracy unless a constraint does"),
        ({"objective": "accuracy"}, "search.task must be given with objective accuracy"),
        ({"constraint": "accuracy>=0.5"}, "search.task must be given with objective accuracy"),
        ({"constraint": "parameters<3M"}, "search.constraint must be FIGURE<=NUMBER .* got 'parameters<3M'"),
        ({"constraint": "parameters>=1e400"}, "search.constraint must be a finite number, got '1e400'"),
        ({"reference_points": "1:1e308T", "strategy": "rnsga2"}, "search.reference_points must be a finite number"),
        ({"constraint": "size<=3M"}, "search.constraint must be of loss, .* got 'size'"),
        ({"step": 2}, "search.step needs strategy hill-climbing, got heuristic; drop step"),
        ({"reference_points": "1:2", "strategy": "nsga2"}, "search.reference_points needs strategy rnsga2, got nsga2"),
        ({"race_error": 0.1}, "unknown key 'search.race_error'"),
        ({"cache_budget": "much"}, "search.cache_budget must be a number with a unit such as 2GB"),
        ({"reference_points": "1:2:3", "strategy": "rnsga2"}, "search.reference_points must have 2 numbers .*'1:2:3'"),
        ({"reference_points": "a:2", "strategy": "rnsga2"}, "search.reference_points must be a number .* got 'a'"),
        ({"step": 0}, "search.step must be greater than 0"),
    ],
)
def test_what_cannot_be_aimed_at_is_refused_in_one_line(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        config(**given_)
    assert "\n" not in str(error.value)


def test_a_quality_alone_is_joined_by_the_parameters() -> None:
    assert config().objectives == config(objective="loss").objectives == ("loss", "parameters")
    assert config(objective="accuracy", task="number").objectives == ("accuracy", "parameters")
    assert config(objective="parameters", constraint="loss<=0.5").objectives == ("parameters",)
    assert config(objective=["macs", "loss"]).objectives == ("macs", "loss")


def test_all_figures_of_objectives_and_constraints_are_asked_for_once() -> None:
    found = config(objective="parameters", constraint="loss<=0.5, macs<=1G,parameters<=3M")
    assert found.figures == ("parameters", "loss", "macs")
    assert found.constraints[2] == Constraint("parameters", "<=", 3e6)


def test_options_at_their_default_may_be_named_with_any_strategy() -> None:
    assert config(strategy="random", step=1).options == config().options
    assert config(strategy="hill-climbing", step=2).options.step == 2


@given(figures, figures)
def test_of_two_configurations_the_better_is_debs(one: Figures, other: Figures) -> None:
    """Feasible before infeasible; of infeasible ones, the smaller violation; of feasible ones, by the objectives."""

    def violation(metrics: Figures) -> float:
        return max(metrics["parameters"] / 100 - 1, 0) + max(metrics["loss"] / 0.5 - 1, 0)

    a, b = violation(one), violation(other)
    costs = [(-metrics["accuracy"], metrics["loss"], metrics["parameters"]) for metrics in (one, other)]
    better = a < b if a != pytest.approx(b) else costs[0] <= costs[1]
    history = [Evaluated(SIX.heuristic(), metrics) for metrics in (one, other)]
    assert (THREE.best(history).metrics == one) == (better or one == other)
    assert [e.metrics for e in THREE.feasible(history)] == [m for m in (one, other) if violation(m) == 0.0]


def test_costs_and_values_turn_into_each_other() -> None:
    assert THREE.cost({"accuracy": 0.75, "loss": 1, "parameters": 3}) == (-0.75, 1.0, 3.0)
    assert THREE.as_costs(THREE.as_costs((0.75, 1.0, 3.0))) == (0.75, 1.0, 3.0)


def test_a_figure_of_a_constraint_must_be_finite_too() -> None:
    with pytest.raises(InputError, match="must return a finite 'macs', got None"):
        Goal(("loss",), (Constraint("macs", "<=", 3),)).check(SIX.heuristic(), {"loss": 1.0})


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("heuristic", "maximal")])
def test_under_a_tight_bound_every_strategy_that_looks_finds_something_feasible(strategy: str) -> None:
    """15 of 81 configurations fit in: the smallest, and those one or two steps above it."""
    space = make_space(4)
    goal = Goal(constraints=(Constraint("parameters", "<=", 4 * 16 + 16),))
    result = run_search(space, conflicting(space), a_plan(strategy, 81 if strategy == "exhaustive" else 40, goal=goal))
    assert result.chosen.metrics["parameters"] <= 80
    assert all(e.metrics["parameters"] <= 80 for e in result.pareto)
    best = min(e.metrics["loss"] for e in result.evaluations if e.metrics["parameters"] <= 80)
    assert result.chosen.metrics["loss"] == best


@pytest.mark.parametrize("strategy", ["nsga2", "rnsga2"])
def test_children_of_feasible_parents_are_mostly_feasible(strategy: str) -> None:
    space = make_space(20)
    goal = Goal(constraints=(Constraint("parameters", "<=", 20 * 20),))
    history = run_search(space, conflicting(space), a_plan(strategy, 100, goal=goal)).evaluations
    drawn = run_search(space, conflicting(space), a_plan("random", 100, goal=LOSS)).evaluations
    shares = [sum(e.metrics["parameters"] <= 400 for e in some[50:]) for some in (history, drawn)]
    assert shares[0] > 3 * shares[1]


def test_the_study_knows_objectives_and_constraints(tmp_path: Any) -> None:
    space, plan = make_space(3), a_plan(max_evaluations=9, goal=THREE)

    def objective(ranks: RankConfig) -> Figures:
        size = sum(ranks.values())
        return {"accuracy": size / 96, "loss": 1 - size / 96, "parameters": size * 1.5}

    climb(Nsga2, space, objective, plan, StudyLocation(url_of(tmp_path)))
    study = optuna.load_study(study_name="search", storage=url_of(tmp_path))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        assert trial.values == [trial.user_attrs[name] for name in THREE.objectives]
        assert trial.constraints == THREE.excesses(trial.user_attrs)
    refuse(
        space,
        a_plan(max_evaluations=9, goal=Goal(THREE.objectives)),
        StudyLocation(url_of(tmp_path), resume=True),
        "goal",
    )


def test_nothing_feasible_ends_in_one_line_that_names_the_nearest_and_the_study_goes_on(tmp_path: Any) -> None:
    location = StudyLocation(url_of(tmp_path), resume=True)
    goal = Goal(constraints=(parse_constraint("loss<=20"),))
    objective = conflicting(SIX)
    with pytest.raises(
        InputError, match="must meet loss<=20, and none of 1 evaluated does; the nearest has loss "
    ) as e:
        run_search(SIX, objective, a_plan("hill-climbing", 1, goal=goal), location)
    assert "--resume" in str(e.value)
    assert "\n" not in str(e.value)
    result = run_search(SIX, objective, a_plan("hill-climbing", 20, goal=goal), location)
    assert result.chosen.metrics["loss"] <= 20
    assert len(result.evaluations) > 1


def test_the_hypervolume_comes_with_its_reference_in_the_figures_own_units() -> None:
    goal = Goal(("accuracy", "parameters"))

    def objective(ranks: RankConfig) -> Figures:
        return {"accuracy": {32: 0.75, 24: 0.5, 16: 0.25}[ranks["layers.0.up_proj"]], "parameters": sum(ranks.values())}

    space = make_space(1)
    data = run_search(space, objective, a_plan("exhaustive", 3, goal=goal)).as_data()
    assert data["hypervolume"] == {"value": 0.25 * 8, "reference": {"accuracy": 0.25, "parameters": 32.0}}
    assert len(data["pareto"]) == 3


def test_one_objective_has_a_front_of_its_best() -> None:
    result = run_search(SIX, conflicting(SIX), a_plan("minimal", goal=Goal(("parameters",))))
    assert result.pareto == [result.chosen] == [result.evaluations[1]]
