"""What people read: which layers have which figure."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from shears.config.notation import by_layer


def test_the_most_frequent_figure_comes_first_and_neighbours_are_a_range() -> None:
    assert by_layer({0: "24", 1: "24", 2: "24"}) == "24 in all 3 layers"
    assert by_layer({3: "24", 0: "24", 1: "24", 2: "16"}) == "24 in layers 0-1, 3; 16 in layer 2"


@given(st.dictionaries(st.integers(0, 40), st.sampled_from(["32", "24", "16"]), min_size=1))
def test_every_layer_is_named_once(figures: dict[int, str]) -> None:
    words = by_layer(figures)
    if len(set(figures.values())) == 1:
        assert words == f"{next(iter(figures.values()))} in all {len(figures)} layers"
        return
    read: dict[int, str] = {}
    for part in words.split("; "):
        figure, _, _, ranges = part.split(" ", 3)
        ends = ([int(end) for end in each.split("-")] for each in ranges.split(", "))
        read |= dict.fromkeys(chain.from_iterable(range(each[0], each[-1] + 1) for each in ends), figure)
    assert read == figures
