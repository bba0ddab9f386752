"""Neighbours: all of them, once, whatever the step."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.strategies.hill_climb import shuffled_neighbours
from tests.searching.formulas import make_space


def by_definition(space: SearchSpace, config: RankConfig, step: int) -> set[RankConfig]:
    found = set()
    for ranks in itertools.product(*space.ranks.values()):
        other = RankConfig(dict(zip(space.ranks, ranks, strict=True)))
        moves = [abs(space.ranks[g].index(other[g]) - space.ranks[g].index(config[g])) for g in space.ranks]
        if sum(move > 0 for move in moves) == 1 and max(moves) <= step:
            found.add(other)
    return found


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([(3,), (4, 2), (32, 24, 16), (8, 6, 4, 2)]), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_neighbours_are_those_of_the_definition_each_once(ranks: list[tuple[int, ...]], step: int, seed: int) -> None:
    space = SearchSpace({f"layers.{index}.up_proj": each for index, each in enumerate(ranks)})
    config = space.random(random.Random(seed))
    found = list(shuffled_neighbours(space, config, step, random.Random(seed)))
    assert len(found) == len(set(found))
    assert set(found) == by_definition(space, config, step)


def test_the_seed_is_the_order() -> None:
    space = make_space(9)
    runs = [list(shuffled_neighbours(space, space.heuristic(), 1, random.Random(seed))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_configuration_of_another_space_is_refused() -> None:
    with pytest.raises(InputError, match="must name the 2 groups"):
        next(shuffled_neighbours(make_space(2), make_space(1).heuristic(), 1, random.Random(0)))
