"""A question is known again under another template, spacing and punctuation, and not taken for another one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.questions import question_id, question_of


@pytest.mark.parametrize(
    "text",
    [
        "How many pens has Ann , who had 3 , and got 4 ?",
        "Question: How many pens has Ann, who had 3, and got 4?\nAnswer:",
        "how many pens has ann who had 3 and got 4",
        "  How many pens has Ann,\nwho had 3, and got 4?? ",
    ],
)
def test_spacing_case_punctuation_and_template_do_not_matter(text: str) -> None:
    assert question_id(text) == question_id("How many pens has Ann, who had 3, and got 4?")


PAIRS = [("3 + 4", "3 - 4"), ("3.5", "4.5"), ("Ann has 3", "Ann has 4"), ("a b", "b a")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_other_words_numbers_signs_or_order_are_another_question(one: str, other: str) -> None:
    assert question_id(one) != question_id(other)


@given(st.text(max_size=40))
def test_any_text_has_a_name_of_its_own_words(text: str) -> None:
    assert len(question_id(text)) == 16
    assert question_id(text) == question_id(f"  {text}\n")


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Add.", "input": "3 4", "output": "7"}, "Add. 3 4"),
        ({"prompt": "3+4?", "completion": "7"}, "3+4?"),
        ({"prompt": "Which?", "choices": ["ice", "fire"]}, "Which? ice fire"),
        ({"question": "How?", "choices": {"text": ["a"]}}, "How?"),
        ({"original_text": "How many?", "ans": 2}, "How many?"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "Hi"),
        ({"messages": [{"role": "system", "content": "Be"}]}, ""),
        ({"text": "a"}, ""),
    ],
)
def test_what_a_row_asks(row: dict[str, object], question: str) -> None:
    assert question_of(row) == question
