"""A question keeps its id under other templates, spacing and punctuation, and different questions differ."""

import pytest

from shears.data.templates import (
    TEMPLATES,
    question_id,
    question_of,
    render_completion,
    render_prompt,
    without_template,
)


@pytest.mark.parametrize(
    "text",
    [
        "How many pens has Ann , who had 3 , and got 4 ?",
        "Question: How many pens has Ann, who had 3, and got 4?\nAnswer:",
        "how many pens has ann who had 3 and got 4",
        "  How many pens has Ann,\nwho had 3, and got 4?? ",
        "How many pens has Ann! (who had 3) and: got [4].",
        render_prompt("alpaca", "How many pens has Ann, who had 3, and got 4?"),
        render_prompt("alpaca", "How many pens has Ann,", "who had 3, and got 4?"),
    ],
)
def test_spacing_case_punctuation_and_template_do_not_matter(text: str) -> None:
    assert question_id(text) == question_id("How many pens has Ann, who had 3, and got 4?")


def test_questions_of_words_and_whole_numbers_have_the_ids_of_earlier_files() -> None:
    assert question_id("How many pens has Ann, who had 3 - 1, and got 4?") == "04a1b88907c0602b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is ( 3 + 4 ) * 2 ?", "What is (3+4)*2?"),
        ("He paid $1.50.", "he paid $ 1.50"),
    ],
)
def test_how_signs_are_set_does_not_matter(one: str, other: str) -> None:
    assert question_id(one) == question_id(other)


PAIRS = [
    ("3 + 4", "3 - 4"), ("3.5", "4.5"), ("Ann has 3", "Ann has 4"), ("a b", "b a"), ("1.5", "1 5"), ("1 .5", "1 5"),
    ("1 .5", "1.5"), ("x^2", "x 2"), ("x\u00b2", "x2"), ("\u22125", "5"), ("\u221a2", "2"),
    ("x = y", "x \u2260 y"), ("5 \u00b1 1", "5 1"), ("Question 5", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_other_words_numbers_signs_or_order_are_another_question(one: str, other: str) -> None:
    assert question_id(one) != question_id(other)


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
def test_the_question_of_a_row(row: dict[str, object], question: str) -> None:
    assert question_of(row) == question


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0915\u0940 \u0909\u092e\u094d\u0930", "\u0915\u093e \u0909\u092e\u094d\u0930"),  # Hindi: ki, ka
        ("\u0e17\u0e35\u0e48", "\u0e17\u0e31\u0e48"),  # Thai
        ("\U0001f600", "!!"),
        ("x\u0304?", "x?"),  # an accent that no letter is composed with
    ],
)
def test_marks_and_lone_symbols_tell_questions_apart(one: str, other: str) -> None:
    assert question_id(one) != question_id(other)


def test_composed_and_decomposed_letters_are_the_same_question() -> None:
    assert question_id("caf\u00e9?") == question_id("Cafe\u0301") != question_id("cafe")


def test_question_template_ends_in_answer_and_the_completion_begins_with_one_space() -> None:
    assert render_prompt("question", "How many?") == "Question: How many?\nAnswer:"
    assert render_prompt("question", "How many?", "3 pears") == "Question: How many?\n3 pears\nAnswer:"
    assert render_completion("question", "\n 3 ") == " 3"


def test_alpaca_template_is_the_published_wording() -> None:
    assert render_prompt("alpaca", "Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    with_input = render_prompt("alpaca", "Add.", "1 2")
    assert "paired with an input that provides further context" in with_input
    assert with_input.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_can_be_taken_off_again(template: str) -> None:
    assert without_template(render_prompt(template, "Add  them.\n(Both)")) == "Add  them.\n(Both)"
    assert without_template(render_prompt(template, "Add.", "1 2")).split() == ["Add.", "1", "2"]
