"""Reading responses: the official rules with their known faults, and the strict ones that have them not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.evaluation.extraction import Reading, is_right, read_label, read_letter, read_number, response_of

ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("The answer is 42.", 42.0, 42.0),
        ("The answer is 42. Check: 40 + 2 = 42, in 3 steps", 3.0, 42.0),  # talk goes on behind the answer
        ("5 apples and 7 pears make 12", 12.0, 12.0),
        ("it costs $1,234,567.50", 1234567.5, 1234567.5),
        ("choose from 1,2,3", 123.0, 3.0),  # a list becomes one number
        ("the answer is 1,2", 12.0, None),  # two numbers are no answer
        ("between 10-15", -15.0, 15.0),  # a range becomes negative
        ("it fell to -15", -15.0, -15.0),
        ("3 -2 = 1", 1.0, 1.0),
        ("The answer is 2/3", 3.0, 2 / 3),  # a fraction's denominator
        ("The answer is 1/0", 0.0, None),
        ("half is .5", 5.0, 0.5),  # the point in front is lost
        ("The answer is 58 + 94 = 152 inches.", 152.0, 152.0),
        ("The answer is 4 red and 3 blue ones.", 3.0, None),
        ("16 - 3 = <<16-3=13>>13 eggs\n#### 13", 13.0, 13.0),
        ("#### 18\nEach of the 4 got it", 4.0, 18.0),
        ("Answer: 7\n### Instruction:\nAdd 3 to 9", 9.0, 7.0),  # the model invents a further instruction
        ("The answer is 8.\n\n### Response:\nThe answer is 9.", 8.0, 8.0),  # the papers stop there, too
        ("1e5", 5.0, 5.0),
        ("the answer is five", None, None),
        ("none", None, None),
        ("", None, None),
        ("6. ", 6.0, 6.0),
        ("version 1.2.3", 3.0, 3.0),
        ("9" * 400, None, None),  # beyond a float
        (f"The answer is {'9' * 400}", None, None),
        (f"The answer is {'9' * 400} or 5", 5.0, None),
    ],
)
def test_numbers(text: str, official: float | None, strict: float | None) -> None:
    assert read_number(response_of(text)) == Reading(official, strict)


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("The answer is (D).", "D", "D"),
        ("Because 3 > 2, the answer is (C).", "B", "C"),  # a letter inside a word
        ("A train travels 60 km. The answer is (E).", "A", "E"),  # an article
        ("Cost: Rs. 7.5.The answer is (B).", "C", "B"),
        ("Dividing by 4 gives 5, so option E is right", "D", "E"),
        ("C", "C", "C"),
        ("(B) 30", "B", "B"),
        ("D) 12 m", "D", "D"),
        ("B. 4", "B", "B"),
        ("A man buys 4", "A", None),  # no answer at all
        ("so (A) it is", "A", "A"),
        ("(A) or (B)", "A", "A"),  # begins with one
        ("either (A) or (B)", "A", None),
        ("Choice: C", "C", "C"),
        ("the answer is e", None, None),
        ("Hence it is 12", None, None),
        ("Answer is 4, that is (C).", "A", "C"),
        ("", None, None),
        ("The answer is (A).\n### Instruction:\nThe answer is (B).", "A", "A"),
        ("At first: the answer is (B). No: the answer is (C).", "A", "C"),
    ],
)
def test_letters(text: str, official: str | None, strict: str | None) -> None:
    assert read_letter(response_of(text)) == Reading(official, strict)


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("the correct answer is answer3", "answer3", "answer3"),
        ("answer1 is wrong, the correct answer is answer2", "answer1", "answer2"),  # the first one named
        ("answer1/answer2/answer3/answer4", "answer1", None),  # the format repeated
        ("The correct answer is Answer2", None, "answer2"),  # capitals
        ("answer12", "answer1", None),  # inside a longer word
        ("answer3", "answer3", "answer3"),
        ("answer 3", None, None),
        ("the correct answer is answer4\n### Response:\nanswer1", "answer4", "answer4"),
        ('the correct answer is "answer5"', "answer5", "answer5"),
        ("", None, None),
    ],
)
def test_labels(text: str, official: str | None, strict: str | None) -> None:
    assert read_label(response_of(text), ANSWERS) == Reading(official, strict)


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("the correct answer is true", "true", "true"),
        ("that is untrue, it is false", "true", "false"),  # inside a word
        ("False", None, "false"),
        ("it is not true", "true", None),
        ("true or false", "true", None),
        ("falsehood", "false", None),
    ],
)
def test_true_and_false(text: str, official: str | None, strict: str | None) -> None:
    assert read_label(text, ("true", "false")) == Reading(official, strict)


@given(st.text(max_size=60))
def test_the_official_rules_are_the_published_ones(text: str) -> None:
    """Restated from LLM-Adapters' evaluate.py and commonsense_evaluate.py."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    assert read_number(text).official == (float(numbers[-1]) if numbers else None)
    letters = re.findall(r"A|B|C|D|E", text.strip())
    assert read_letter(text).official == (letters[0] if letters else None)
    labels = re.findall(r"answer1|answer2|answer3|answer4|answer5", text.strip())
    assert read_label(text, ANSWERS).official == (labels[0] if labels else None)


@given(st.decimals(-(10**6), 10**6, places=3))
def test_a_number_that_is_stated_is_read_by_both_rules(value: object) -> None:
    for text in (f"17 days and 3,000 words: the answer is {value}", f"####{value:,}"):
        assert read_number(text) == Reading(float(str(value)), float(str(value)))


@given(st.sampled_from(ANSWERS), st.text("bcd ", max_size=10))
def test_a_label_that_is_stated_is_read_whatever_stands_around_it(label: str, talk: str) -> None:
    assert read_label(f"{talk}\nthe correct answer is {label} {talk}", ANSWERS) == Reading(label, label)


def test_numbers_are_right_within_a_thousandth_and_others_letter_by_letter() -> None:
    assert is_right(1.8334, 1.8333)
    assert not is_right(1.9, 1.8)
    assert not is_right(None, 1.0)
    assert not is_right(None, "A")
    assert not is_right("A", 1.0)
    assert is_right("A", "A")
