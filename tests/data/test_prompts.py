"""One template for training and evaluation."""

import pytest

from shears.data.templates import TEMPLATES, render_completion, render_prompt, without_template
from shears.errors import InputError


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
    assert without_template(render_prompt(template, render_prompt(template, "Add."))) == "Add."


@pytest.mark.parametrize("text", ["Question 5: add.", "Answer: 3 or 4?", "What is the answer", "Unanswer:", "a\n\nb"])
def test_text_that_is_no_template_stays(text: str) -> None:
    assert without_template(text) == text


def test_an_unknown_template_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="question, alpaca, got 'qestion'"):
        render_prompt("qestion", "Add.")
