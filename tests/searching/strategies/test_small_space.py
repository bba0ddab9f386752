"""On 3^6 configurations, where the optimum is known: who finds it, who does not, within which budget.

`benchmarks/search_space.py` prints what is not certain: how far each strategy stays.
"""

import pytest
from benchmarks.search_space import distance_row, every, front_row, landscape, small_space, trade_off

from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.searching.explore import run_search
from shears.searching.strategies.base import SearchPlan
from shears.searching.strategies.simple import LARGEST_SPACE, Exhaustive
from tests.searching.formulas import a_plan, climb, counted, make_space, separable

SPACE = small_space()
SEEDS = range(4)


def optimum(seed: int, ruggedness: float) -> RankConfig:
    objective = landscape(SPACE, seed, ruggedness)
    return min(every(SPACE), key=lambda ranks: objective(ranks)["loss"])


def test_exhaustive_search_evaluates_every_configuration_once_and_chooses_the_optimum() -> None:
    objective, asked = counted(landscape(SPACE, 0, 0.5))
    result = run_search(SPACE, objective, a_plan("exhaustive", 729))
    assert set(asked) == set(every(SPACE))
    assert len(asked) == 729
    assert asked[0] == SPACE.heuristic()
    assert result.chosen.ranks == optimum(0, 0.5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ruggedness", [0.0, 0.5])
def test_hill_climbing_by_two_places_finds_the_optimum_in_200_evaluations(seed: int, ruggedness: float) -> None:
    result = run_search(SPACE, landscape(SPACE, seed, ruggedness), a_plan("hill-climbing", 200, seed, step=2))
    assert result.chosen.ranks == optimum(seed, ruggedness)


@pytest.mark.parametrize(("name", "found", "gap"), [("hill climbing, step 2", 1.0, 0.0), ("hill climbing", 0.4, 0.1)])
def test_within_a_hundred_evaluations_of_a_rugged_space(name: str, found: float, gap: float) -> None:
    row = distance_row(name, 0.5, 5)
    assert row["found"] >= found
    assert row["gap"] <= gap
    assert row["evaluations"] <= 100


def test_the_front_of_nsga2_dominates_more_than_that_of_random_search() -> None:
    assert min(front_row("NSGA-II", 12, 60, [0, 1])) > max(front_row("random", 12, 60, [0, 1]))


def test_the_trade_off_has_both_ends() -> None:
    objective = trade_off(SPACE, 0)
    assert objective(SPACE.maximal())["loss"] == 0.0
    assert objective(SPACE.maximal())["parameters"] == 2 * objective(SPACE.minimal())["parameters"]


def test_an_exhaustive_search_of_a_large_space_or_with_a_small_budget_is_refused() -> None:
    with pytest.raises(InputError, match=r"at most 100,000 configurations, got about 1e43; tie more layers"):
        Exhaustive(make_space(90), a_plan())
    assert make_space(11).size > LARGEST_SPACE
    with pytest.raises(InputError, match="got 177,147"):
        Exhaustive(make_space(11), a_plan())
    with pytest.raises(InputError, match="max_evaluations must be at least 729, the whole space, .* got 50"):
        run_search(SPACE, separable(SPACE), a_plan("exhaustive", 50))


def test_every_proposal_of_an_exhaustive_search_is_a_function_of_the_history() -> None:
    space = make_space(3)
    plan = SearchPlan("exhaustive", 27, 0)
    history = climb(Exhaustive, space, separable(space), plan).history
    kept = Exhaustive(space, plan)
    assert [e.ranks for e in history[:2]] == [space.heuristic(), space.maximal()]
    for length in [*range(27), 3, 20, 0]:
        assert kept.propose(history[:length]) == history[length].ranks
    assert kept.propose(history) is None
    some = [e for e in history if e.ranks not in (space.heuristic(), history[9].ranks)]
    assert kept.propose(some) == space.heuristic(), "another history, with holes"
