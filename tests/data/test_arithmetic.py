"""The embedded problems: right, disjoint, and the same on every machine."""

import hashlib
import json
import re
from fractions import Fraction

import pytest

from shears.data.answer_reading import evaluate_equation
from shears.data.word_problems import DRAWS, SPLITS, STORIES, arithmetic_rows
from shears.errors import InputError

ALL = {split: arithmetic_rows(split) for split in SPLITS}


def test_splits_have_the_promised_sizes_and_no_question_in_common() -> None:
    questions = {split: {row["prompt"] for row in rows} for split, rows in ALL.items()}
    assert {split: len(found) for split, found in questions.items()} == {"train": 2000, "validation": 200, "test": 400}
    assert len(set.union(*questions.values())) == 2600


@pytest.mark.parametrize("split", SPLITS)
def test_every_equation_gives_the_answer_exactly(split: str) -> None:
    for row in ALL[split]:
        left, right = row["completion"].split(" = ")
        numbers = re.sub(r"[\d.]+", lambda match: f"Fraction('{match[0]}')", left.strip())
        assert eval(numbers, {"Fraction": Fraction}) == Fraction(right) == Fraction(row["answer"])
        assert Fraction(row["answer"]) > 0
        assert evaluate_equation(row["completion"]) == pytest.approx(float(row["answer"]))


def test_every_number_of_the_equation_stands_in_the_question() -> None:
    for row in ALL["test"]:
        there = re.findall(r"[\d.]*\d", row["prompt"])
        assert set(re.findall(r"[\d.]+", row["completion"].split("=")[0])) <= set(there)


def test_every_story_is_used_and_leaves_no_slot_open() -> None:
    assert STORIES.keys() == DRAWS.keys()
    assert sum(map(len, STORIES.values())) >= 40
    assert not any(re.search(r"[{}]", row["prompt"] + row["completion"]) for row in ALL["train"])
    assert len({re.sub(r"[\d.]+", "0", row["completion"].split("=")[0]) for row in ALL["test"]}) >= 10


def test_the_rows_are_the_same_bits_everywhere() -> None:
    digest = hashlib.sha256(json.dumps(ALL, sort_keys=True).encode()).hexdigest()
    assert digest == "ad814b2aa36e8c3af167b9bda6d98502e05292f7adf4512c65671e7ac0751df3"


def test_rows_are_fresh_so_that_a_caller_may_change_them() -> None:
    arithmetic_rows("test")[0]["answer"] = "changed"
    assert arithmetic_rows("test") == ALL["test"]


def test_an_unknown_split_is_an_error() -> None:
    with pytest.raises(InputError, match="train, validation, test, got 'dev'"):
        arithmetic_rows("dev")
