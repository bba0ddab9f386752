"""Search spaces and rank configurations as values: what they hold, refuse and enumerate."""

import copy
import itertools
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError

falling_ranks = st.sets(st.integers(1, 64), min_size=1, max_size=4).map(
    lambda ranks: tuple(sorted(ranks, reverse=True))
)
# plain data: a space made inside a strategy would draw from `random`, for beartype checks containers by sampling
some_ranks = st.dictionaries(st.sampled_from("abcd"), falling_ranks, min_size=1, max_size=3)


def everything(space: SearchSpace) -> list[RankConfig]:
    """Every configuration, by brute force."""
    groups = list(space.ranks)
    return [RankConfig(dict(zip(groups, ranks, strict=True))) for ranks in itertools.product(*space.ranks.values())]


def test_a_configuration_is_a_value_whatever_the_order() -> None:
    ranks = {"b": 2, "a": 1}
    config = RankConfig(ranks)
    ranks["a"] = 2
    assert config == {"a": 1, "b": 2}
    assert hash(config) == hash(RankConfig({"a": 1, "b": 2}))
    assert list(config) == ["a", "b"]
    assert config != RankConfig({"a": 1, "b": 3})
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))  # noqa: S301


@given(some_ranks, st.integers())
def test_a_space_agrees_with_brute_force(ranks: dict[str, tuple[int, ...]], seed: int) -> None:
    space = SearchSpace(ranks)
    configs = everything(space)
    assert space.size == len(set(configs))
    drawn = space.random(random.Random(seed))
    assert drawn in configs
    assert drawn == space.check(dict(drawn)) == space.random(random.Random(seed))
    places = {group: {rank: place for place, rank in enumerate(ranks)} for group, ranks in space.ranks.items()}
    near = [c for c in configs if sum(abs(places[g][c[g]] - places[g][drawn[g]]) for g in c) == 1]
    assert sorted(map(dict, space.neighbours(drawn)), key=str) == sorted(map(dict, near), key=str)
    for group, allowed in space.ranks.items():
        above = sum(rank > space.heuristic()[group] for rank in allowed)
        below = sum(rank < space.heuristic()[group] for rank in allowed)
        assert above - below in (0, 1)
        assert space.minimal()[group] == min(allowed)
        assert space.maximal()[group] == max(allowed)


@pytest.mark.parametrize("ranks", [{}, {"a": ()}, {"a": (0,)}, {"a": (4, 4)}, {"a": (16, 32)}])
def test_a_space_needs_groups_of_falling_ranks(ranks: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="at least one group|positive and largest first"):
        SearchSpace(ranks)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"a": 3}, r"rank of a must be one of \[4, 2\], got 3"), ({}, "a is missing"), ({"a": 4, "b": 4}, "b is not one")],
)
def test_a_configuration_of_another_space_is_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace({"a": (4, 2)}).check(RankConfig(config))


def test_a_space_is_what_its_record_describes() -> None:
    space = SearchSpace({"b": [4, 2], "a": [8]}, {"b": ["x"], "a": ["y", "z"]}).nested()
    assert SearchSpace.of_data(space.as_data()) == space
