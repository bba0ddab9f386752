"""Tied layers: a coarser space whose configurations are configurations of the full one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.groups import build_space
from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.searching.explore import run_search
from shears.searching.tied import tie_layers
from tests.searching.formulas import a_plan, make_space, separable
from tests.tiny import tiny_model

GROUPS = ("q_proj+k_proj+v_proj", "up_proj")


def full_space(num_layers: int) -> SearchSpace:
    names = {f"layers.{layer}.{kind}": (f"{layer}.{kind}",) for layer in range(num_layers) for kind in GROUPS}
    return SearchSpace(dict.fromkeys(names, (4, 2, 1)), names)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_a_tied_configuration_gives_each_run_of_layers_one_rank_by_kind(layers: int, size: int, seed: int) -> None:
    full = full_space(layers)
    tied = tie_layers(full, size)
    assert len(tied.space.ranks) == len(GROUPS) * -(-layers // size)
    config = tied.space.random(random.Random(seed))
    expanded = full.check(tied.expand(config))
    for kind in GROUPS:
        by_layer = [expanded[f"layers.{layer}.{kind}"] for layer in range(layers)]
        assert all(len(set(by_layer[start : start + size])) == 1 for start in range(0, layers, size))
    named = [name for names in tied.space.modules.values() for name in names]
    assert sorted(named) == sorted(name for names in full.modules.values() for name in names)


def test_ends_and_middle_are_those_of_the_full_space() -> None:
    full = full_space(7)
    tied = tie_layers(full, 3)
    for name in ("heuristic", "maximal", "minimal"):
        assert tied.expand(getattr(tied.space, name)()) == getattr(full, name)()


def test_a_run_is_named_by_its_first_and_last_layer() -> None:
    assert list(tie_layers(make_space(12), 5).space.ranks) == [
        "layers.0-4.up_proj", "layers.10-11.up_proj", "layers.5-9.up_proj",
    ]  # fmt: skip
    assert "layers.10.up_proj" in tie_layers(make_space(11), 5).space.ranks


def test_tied_by_one_it_is_the_space_itself_whatever_its_groups() -> None:
    space = SearchSpace({"a": (2, 1)})
    assert tie_layers(space, 1).space == space
    assert tie_layers(space, 1).expand({"a": 2}) == {"a": 2}


def test_the_groups_of_a_model_can_be_tied() -> None:
    space = build_space(tiny_model(), GROUPS, (4, 2))
    assert set(tie_layers(space, 2).space.ranks) == {f"layers.0-1.{kind}" for kind in GROUPS}


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"head": (2, 1)}, "tied groups must be in layers, such as layers.0.up_proj, got 'head'"),
        ({"layers.0.up": (2, 1), "layers.1.up": (4, 1)}, "tied groups must have the same ranks"),
    ],
)
def test_what_cannot_be_tied_is_refused(ranks: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tie_layers(SearchSpace(ranks), 2)


def test_a_result_of_a_tied_search_is_one_of_the_full_space() -> None:
    full = make_space(9)
    tied, objective = tie_layers(full, 3), separable(full)
    found = run_search(tied.space, lambda ranks: objective(tied.expand(ranks)), a_plan("exhaustive", 27))
    result = found.expanded(tied.expand)
    assert len(result.evaluations) == 27
    assert all(objective(full.check(e.ranks)) == e.metrics for e in [result.chosen, *result.pareto])
