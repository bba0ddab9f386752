"""N:M patterns: what they ask of sparsity, allocation and sizes."""

import pytest

from shears.errors import InputError
from shears.sparsity.plan import choose
from tests.sparsity.test_plan import config, counts
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, r"2:4 is a sparsity of 0\.5 everywhere; set sparsity=0\.5"),
        ({"pattern": "1:4"}, r"1:4 is a sparsity of 0\.75 everywhere; set sparsity=0\.75"),
        ({"pattern": "2:4", "allocation": "sensitivity"}, "2:4 is a sparsity"),
        ({"pattern": "2:4", "sparsity_of": "q_proj=0.5"}, "2:4 is a sparsity"),
        ({"pattern": "3:2"}, "must keep 0 < N < M weights, got 3:2"),
        ({"pattern": "4:4"}, "must keep 0 < N < M weights, got 4:4"),
        ({"pattern": "0:4", "sparsity": 0.0}, "must keep 0 < N < M weights, got 0:4"),
        ({"pattern": "layer"}, r"sparsify\.pattern must be row or N:M such as 2:4, got 'layer'"),
    ],
)
def test_patterns_that_contradict_the_rest_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**keys)


@pytest.mark.parametrize(("pattern", "sparsity"), [("1:3", 0.666667), ("2:3", 1 / 3), ("5:7", 0.285714)])
def test_the_sparsity_that_a_pattern_asks_for_is_taken_as_it_is_written(pattern: str, sparsity: float) -> None:
    with pytest.raises(InputError, match=f"set sparsity={sparsity:g} only"):
        config(pattern=pattern)
    chosen, zeros = counts(
        tiny_model(hidden_size=84, intermediate_size=84, head_dim=42), pattern=pattern, sparsity=sparsity
    )
    assert all(zeros[name] == round(sparsity * size) for name, size in chosen.sizes.items())


def test_groups_must_fit_the_inputs_of_every_linear() -> None:
    model = tiny_model(intermediate_size=50)
    with pytest.raises(InputError, match=r"2:4 needs a multiple of 4 inputs, model\.layers\.0\.mlp\.down_proj has 50"):
        choose(model, config(pattern="2:4"))
    chosen, zeros = counts(model, pattern="2:4", skip="down_proj")
    assert all(zeros[name] * 2 == size for name, size in chosen.sizes.items())
    with pytest.raises(InputError, match="needs a multiple of 5 inputs"):
        choose(model, config(pattern="1:5", sparsity=0.8))


def test_groups_are_the_same_share_everywhere() -> None:
    chosen, zeros = counts(tiny_model(), pattern="2:4")
    assert zeros == {name: size // 2 for name, size in chosen.sizes.items()}
