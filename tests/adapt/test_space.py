"""Search spaces and rank configurations as values: what they hold, refuse and enumerate."""

import copy
import itertools
import math
import pickle
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError

Ranks = dict[str, tuple[int, ...]]
falling_ranks = st.sets(st.integers(1, 64), min_size=1, max_size=5).map(
    lambda ranks: tuple(sorted(ranks, reverse=True))
)
# plain data: a space made inside a strategy would draw from `random`, for beartype checks containers by sampling
some_ranks = st.dictionaries(st.sampled_from("abcdef"), falling_ranks, min_size=1, max_size=4)


def everything(space: SearchSpace) -> list[RankConfig]:
    """Every configuration, by brute force."""
    groups = list(space.ranks)
    return [RankConfig(dict(zip(groups, ranks, strict=True))) for ranks in itertools.product(*space.ranks.values())]


@given(st.dictionaries(st.text(), st.integers(1, 64)), st.randoms(use_true_random=False))
def test_a_configuration_is_equal_and_hashed_by_content_whatever_the_order(
    ranks: dict[str, int], shuffler: random.Random
) -> None:
    items = list(ranks.items())
    shuffler.shuffle(items)
    one, other = RankConfig(ranks), RankConfig(dict(items))
    assert one == other == ranks
    assert hash(one) == hash(other)
    assert list(one) == sorted(ranks)


def test_configurations_that_differ_are_unequal() -> None:
    assert RankConfig({"a": 1}) != RankConfig({"a": 2})
    assert RankConfig({"a": 1}) != RankConfig({"b": 1})


def test_a_configuration_does_not_follow_the_mapping_it_was_made_from() -> None:
    ranks = {"a": 1}
    config = RankConfig(ranks)
    ranks["a"] = 2
    assert config["a"] == 1
    with pytest.raises(TypeError):
        config["a"] = 2  # type: ignore[index]


def test_a_configuration_survives_copying_and_pickling() -> None:
    config = RankConfig({"b": 2, "a": 1})
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert repr(config) == "RankConfig({'a': 1, 'b': 2})"


@given(some_ranks)
def test_size_counts_the_configurations(ranks: Ranks) -> None:
    space = SearchSpace(ranks)
    assert space.size == len(everything(space)) == len(set(everything(space)))


def test_the_size_of_a_large_space_is_exact() -> None:
    assert SearchSpace({f"g{index}": (32, 24, 16) for index in range(90)}).size == 3**90


@given(some_ranks)
def test_maximal_and_minimal_bound_every_configuration(ranks: Ranks) -> None:
    space = SearchSpace(ranks)
    for config in (space.heuristic(), *everything(space)[:50]):
        for group, rank in config.items():
            assert space.minimal()[group] <= rank <= space.maximal()[group]
    assert max(space.maximal().values()) == space.max_rank


@pytest.mark.parametrize(
    ("ranks", "middle"),
    [
        ((32,), 32),
        ((32, 16), 16),
        ((32, 24, 16), 24),
        ((32, 24, 16, 8), 16),
        ((5, 4, 3, 2, 1), 3),
        ((6, 5, 4, 3, 2, 1), 3),
    ],
)
def test_the_heuristic_is_the_middle_rank_of_two_the_smaller(ranks: tuple[int, ...], middle: int) -> None:
    assert SearchSpace({"a": ranks}).heuristic() == {"a": middle}


@given(some_ranks)
def test_the_heuristic_has_as_many_ranks_above_as_below_or_one_more_above(ranks: Ranks) -> None:
    space = SearchSpace(ranks)
    for group, rank in space.heuristic().items():
        above = sum(other > rank for other in space.ranks[group])
        below = sum(other < rank for other in space.ranks[group])
        assert above - below in (0, 1)


@given(some_ranks, st.integers())
def test_neighbours_differ_in_one_group_by_one_place(ranks: Ranks, seed: int) -> None:
    space = SearchSpace(ranks)
    config = space.random(random.Random(seed))
    places = {group: {rank: place for place, rank in enumerate(ranks)} for group, ranks in space.ranks.items()}

    def distance(other: RankConfig) -> int:
        return sum(abs(places[group][rank] - places[group][config[group]]) for group, rank in other.items())

    neighbours = list(space.neighbours(config))
    if math.prod(map(len, space.ranks.values())) <= 125:
        assert Counter(neighbours) == Counter(other for other in everything(space) if distance(other) == 1)
    assert all(distance(neighbour) == 1 for neighbour in neighbours)
    assert all(config in space.neighbours(neighbour) for neighbour in neighbours)


@given(some_ranks, st.integers())
def test_random_configurations_belong_to_the_space_and_repeat_with_the_seed(ranks: Ranks, seed: int) -> None:
    space = SearchSpace(ranks)
    config = space.random(random.Random(seed))
    assert space.check(config) == config == space.random(random.Random(seed))


def test_random_draws_every_rank_of_every_group() -> None:
    space, generator = SearchSpace({"a": (3, 2, 1), "b": (8, 4)}), random.Random(0)
    assert {space.random(generator) for _ in range(200)} == set(everything(space))


def test_a_space_of_single_ranks_is_plain_lora() -> None:
    space = SearchSpace({"a": (32,), "b": (32,)})
    assert space.size == 1
    assert space.maximal() == space.heuristic() == space.minimal() == {"a": 32, "b": 32}
    assert list(space.neighbours(space.heuristic())) == []


@pytest.mark.parametrize("ranks", [(), (0,), (4, -1), (4, 4), (4, 8), (16, 32, 24)])
def test_ranks_that_are_not_positive_and_falling_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"positive and largest first, got \[.*\] for group 'a'"):
        SearchSpace({"a": ranks})


def test_a_space_without_groups_is_refused() -> None:
    with pytest.raises(InputError, match="at least one group, got none"):
        SearchSpace({})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": 3}, "rank of a must be one of \\[4, 2\\], got 3"),
        ({}, "must name the 1 groups of its space, got 0; missing or unknown: a"),
        ({"a": 4, "b": 4}, "must name the 1 groups of its space, got 2; missing or unknown: b"),
    ],
)
def test_a_configuration_of_another_space_is_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSpace({"a": (4, 2)}).check(RankConfig(config))


def test_neighbours_of_a_foreign_configuration_are_refused() -> None:
    with pytest.raises(InputError, match="rank of a must be one of"):
        list(SearchSpace({"a": (4, 2)}).neighbours(RankConfig({"a": 3})))


def test_a_space_is_equal_by_content_and_does_not_follow_what_it_was_made_from() -> None:
    ranks, modules = {"b": [4, 2], "a": [8]}, {"b": ["x"], "a": ["y", "z"]}
    space = SearchSpace(ranks, modules)
    ranks["b"].append(1)
    modules["a"].clear()
    assert space == SearchSpace({"a": (8,), "b": (4, 2)}, {"a": ("y", "z"), "b": ("x",)})
    assert list(space.ranks) == ["a", "b"]
