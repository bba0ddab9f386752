"""A training log read back: pairs by example or by step, and what is wrong with a broken line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.searching.training_log import read_pairs
from tests.searching.formulas import make_space
from tests.searching.logs import lines, planted, write

SPACE = SearchSpace({"b": (4, 2), "a": (8, 1)})
STEP = {"step": 1, "loss": 2.5, "tokens": 40, "learning_rate": 0.1, "ranks": {"b": 4, "a": 1}}
EXAMPLE = {"example": 7, "loss": 1.5, "tokens": 3, "ranks": [8, 2]}


def by_example(**changes: Any) -> dict[str, Any]:
    return {"step": 1, "loss": 2.5, "tokens": 40, "learning_rate": 0.1, "examples": [{**EXAMPLE, **changes}]}


def test_pairs_by_example_are_read_as_they_were_written(tmp_path: Path) -> None:
    space = make_space(3)
    pairs = planted(space, 10).pairs
    found = read_pairs(write(tmp_path, lines(pairs)), space)
    for name in ("configs", "losses", "tokens", "steps", "examples"):
        np.testing.assert_array_equal(getattr(found, name), getattr(pairs, name))


@pytest.mark.parametrize("extra", [{}, {"examples": None}])
def test_a_step_is_one_pair_with_its_ranks_in_the_spaces_order(extra: dict[str, Any], tmp_path: Path) -> None:
    found = read_pairs(write(tmp_path, [{**STEP, **extra}]), SPACE)
    assert found.configs.tolist() == [[1, 4]]
    assert (found.losses[0], found.tokens[0], found.steps[0], found.examples[0]) == (2.5, 40.0, 1, -1)


def test_a_torn_last_line_and_examples_without_a_label_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, [by_example(), {**by_example(tokens=0), "ranks": None}], '{"step": 3, "lo')
    assert read_pairs(folder, SPACE).steps.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"step": 1}, "line 2 of .* must be a step with its losses and ranks, got KeyError: 'ranks'; train again"),
        ({**STEP, "ranks": None}, "must be a step with its losses and ranks, got TypeError"),
        ([1], "must be a step with its losses and ranks, got TypeError"),
        ({**STEP, "ranks": {"b": 4}}, "got KeyError: 'a'"),
        ({**STEP, "loss": "much"}, "got ValueError"),
        ({**STEP, "loss": float("nan")}, "must be a step with finite losses, got nan"),
        ({**STEP, "ranks": {"b": 3, "a": 1}}, r"of the search space, in which b has \[4, 2\], got 3;"),
        (by_example(ranks=[8]), "must be ranks of 2 groups, got 1;"),
        (by_example(ranks=[2, 8]), r"a has \[8, 1\], got 2"),
    ],
)
def test_a_line_of_something_else_is_named(line: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_pairs(write(tmp_path, [STEP, line]), SPACE)


def test_a_torn_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1 of .*training_log.jsonl must be JSON, got"):
        read_pairs(write(tmp_path, [], '{"st\n' + '{"step": 1}\n'), SPACE)


@pytest.mark.parametrize(
    ("text", "says"), [(None, "must hold a training_log.jsonl"), ("", "at least one step, got none")]
)
def test_no_log_and_an_empty_one_are_refused(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        write(tmp_path, [], text)
    with pytest.raises(InputError, match=says):
        read_pairs(tmp_path, SPACE)
