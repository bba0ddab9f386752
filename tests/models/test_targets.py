"""Targets name linears by the end of their names, or by a regular expression."""

import pytest

from shears.errors import InputError
from shears.models.targets import matching

NAMES = ["model.layers.0.q_proj", "model.layers.0.k_proj", "model.layers.1.q_proj", "model.layers.1.k_proj"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [0, 2]),
        (["1.q_proj", "0.k_proj"], [1, 2]),
        ([r".*layers\.1\..*"], [2, 3]),
        (["q_proj", ".*q_proj"], [0, 2]),
        ([], []),
    ],
)
def test_targets_match_by_suffix_or_whole_regex_in_the_models_order(targets: list[str], expected: list[int]) -> None:
    assert matching(NAMES, targets) == [NAMES[index] for index in expected]


@pytest.mark.parametrize("target", ["proj", "roj", "layers", "q_projx"])
def test_parts_of_names_do_not_match(target: str) -> None:
    with pytest.raises(InputError, match="this model has q_proj, k_proj"):
        matching(NAMES, [target])


def test_a_misspelt_target_gets_a_suggestion_and_a_bad_regex_its_reason() -> None:
    with pytest.raises(InputError, match=r"'q_porj'; this model has q_proj, k_proj; did you mean 'q_proj'\?"):
        matching(NAMES, ["q_proj", "q_porj"])
    with pytest.raises(InputError, match=r"must be a name or a regex, got '\*'"):
        matching(NAMES, ["*"])
