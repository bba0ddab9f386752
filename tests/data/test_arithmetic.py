"""The embedded problems: right, disjoint, and the same bits as ever."""

import hashlib
import json
import re
from fractions import Fraction

import pytest

from shears.data.answer_reading import evaluate_equation
from shears.data.rows import arithmetic_rows

SIZES = {"train": 2000, "validation": 200, "test": 400}
ALL = {split: arithmetic_rows(split) for split in SIZES}


def test_splits_have_the_promised_sizes_and_no_question_in_common() -> None:
    questions = {split: {row["prompt"] for row in rows} for split, rows in ALL.items()}
    assert {split: len(found) for split, found in questions.items()} == SIZES
    assert len(set.union(*questions.values())) == 2600


@pytest.mark.parametrize("split", SIZES)
def test_every_equation_gives_the_answer_exactly(split: str) -> None:
    for row in ALL[split]:
        left, right = row["completion"].split(" = ")
        numbers = re.sub(r"[\d.]+", lambda match: f"Fraction('{match[0]}')", left.strip())
        assert eval(numbers, {"Fraction": Fraction}) == Fraction(right) == Fraction(row["answer"])
        assert evaluate_equation(row["completion"]) == pytest.approx(float(row["answer"]))


def test_the_rows_are_the_same_bits_as_ever() -> None:
    digest = hashlib.sha256(json.dumps(ALL, sort_keys=True).encode()).hexdigest()
    assert digest == "ad814b2aa36e8c3af167b9bda6d98502e05292f7adf4512c65671e7ac0751df3"
