"""Reading responses: the official rules with their known faults, and the strict rules without them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.answer_reading import is_right, read_answers, response_of

ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42. Check: 40 + 2 = 42, in 3 steps", 3.0),  # talk goes on behind the answer
        ("it costs $1,234,567.50", 1234567.5),
        ("choose from 1,2,3", 123.0),  # a list becomes one number
        ("between 10-15", -15.0),  # a range becomes negative
        ("The answer is 2/3", 3.0),  # a fraction's denominator
        ("half is .5", 5.0),  # the point in front is lost
        ("The answer is 8.\n\n### Response:\nThe answer is 9.", 8.0),  # the papers stop there, too
        ("the answer is five", None),
        ("9" * 400, None),  # beyond a float
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    assert read_answers("number", response_of(text)) == (number, number)


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
        ("(A) or (B)", "A", None),
        ("either (A) or (B)", "A", None),
        ("Choice: C", "C", "C"),
        ("the answer is e", None, None),
        ("Hence it is 12", None, None),
        ("Answer is 4, that is (C).", "A", "C"),
        ("", None, None),
        ("The answer is (A).\n### Instruction:\nThe answer is (B).", "A", "A"),
        ("At first: the answer is (B). No: the answer is (C).", "A", "C"),
        ("The answer is A or B", "A", None),  # several
        ("The answer is (A) and (B)", "A", None),
        ("The answer is B, or option C.", "B", None),
        ("Answer: D/E", "A", None),
        ("option B or option C", "B", None),
        ("Options B and C", "B", None),
        ("A, B and C can do it in 5 days", "A", None),
        ("A) 5 B) 6 C) 7", "A", None),  # the choices repeated
        ("Option C is right. Option A is too small.", "C", None),
        ("Option A is wrong, so it must be C", "A", None),  # what is denied
        ("Option A is wrong, therefore option C", "A", "C"),
        ("(A) and (B) are wrong, (C) is right", "A", "C"),
        ("The answer is not (A) but (B).", "A", "B"),
        ("The answer isn't A. The answer is B.", "A", "B"),
        ("The correct option can't be (A)", "A", None),
        ("The answer is A man", "A", None),  # an article
        ("Answer: A man buys 4", "A", None),
        ("The answer A man gave", "A", None),
        ("The answer is A because it is not 5", "A", "A"),
        ("The answer is A.", "A", "A"),
        ("The answer is A\nThe rest follows", "A", "A"),
        ("The answer is B man", "B", "B"),
        ("The answer is: **C**", "C", "C"),
        ("The answer is 'C'", "C", "C"),
        ("The answer is A's share", "A", None),
        ("C, because 4 is not prime", "C", "C"),
        ("the correct choice is option (D)", "D", "D"),
    ],
)
def test_letters(text: str, official: str | None, strict: str | None) -> None:
    assert read_answers("letter", response_of(text)) == (official, strict)


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
        ("answer1 or answer2", "answer1", None),  # several
        ("the correct answer is answer1 or answer2", "answer1", None),
        ('the correct answer is "answer1" and "answer2"', "answer1", None),
        ("the correct answer is answer1/answer2/answer3", "answer1", None),
        ("the correct answer is not answer1 but answer3", "answer1", "answer3"),  # what is denied
        ("answer1 is wrong", "answer1", None),
        ("neither answer1 nor answer2", "answer1", None),
        ("", None, None),
    ],
)
def test_labels(text: str, official: str | None, strict: str | None) -> None:
    assert read_answers("label", response_of(text), ANSWERS) == (official, strict)


@given(st.text(max_size=60))
def test_the_official_rules_are_the_published_ones(text: str) -> None:
    """Restated from LLM-Adapters' evaluate.py and commonsense_evaluate.py."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    assert read_answers("number", text)[0] == (float(numbers[-1]) if numbers else None)
    letters = re.findall(r"A|B|C|D|E", text.strip())
    assert read_answers("letter", text)[0] == (letters[0] if letters else None)
    labels = re.findall(r"answer1|answer2|answer3|answer4|answer5", text.strip())
    assert read_answers("label", text, ANSWERS)[0] == (labels[0] if labels else None)


def test_numbers_are_right_within_a_thousandth_and_others_letter_by_letter() -> None:
    assert is_right(1.8334, 1.8333)
    assert not is_right(1.9, 1.8)
    assert not is_right(None, 1.0)
    assert not is_right(None, "A")
    assert not is_right("A", 1.0)
    assert is_right("A", "A")
