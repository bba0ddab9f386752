"""The rule of a row: what its right answer is, and which texts give it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.rules import AnswerRule, rule_of
from shears.errors import InputError

GSM8K = {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24.\n#### 1,072"}
AQUA = {"instruction": "How far? Answer Choices: (A) 2 (B) 3 (C) 4 (D) 5 (E) 6", "output": "", "answer": "C"}
BOOLQ = {"instruction": "Is it so?\n\nAnswer format: true/false", "output": "", "answer": "true"}
COLOURS = {"prompt": "Which?", "choices": ["red", "red wine", "blue"], "answer": 1}
TICKET_JSON = '{"amount": 12, "kind": {"name": "bill", "tags": ["a"]}}'
TICKET = {"messages": [{"role": "user", "content": "Paid"}, {"role": "assistant", "content": TICKET_JSON}]}
RIGHT: dict[str, tuple[dict[str, Any], str, str]] = {
    "a number": (GSM8K, "number", "First 4, then 5. The answer is 1072."),
    "a number of a column": ({"prompt": "3/2", "answer": 1.5}, "number", "It is $1.50"),
    "a letter": (AQUA, "choice", "A train goes 4 km. The answer is (C)."),
    "a label": (BOOLQ, "choice", "the correct answer is true"),
    "a choice": (COLOURS, "choice", "Red wine."),
    "a choice's letter": (COLOURS, "choice", "B) red wine"),
    "an object": (TICKET, "json", 'Here:\n```json\n{"kind": {"tags": ["a"], "name": "bill "}, "amount": 12.0}\n```'),
    "a list": ({"prompt": "x", "completion": "[1, 2]"}, "json", "[1,2]"),
    "an object of a column": ({"prompt": "x", "answer": {"a": None}}, "json", '{"a": null}'),
    "a text": ({"instruction": "Translate", "output": "ein Haus "}, "exact", " ein Haus\n"),
    "a text with a number": ({"prompt": "When?", "answer": "at 5"}, "exact", "at 5"),
    "a list of numbers is no number": ({"prompt": "x", "answer": "1,2,3"}, "exact", "1,2,3"),
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another number": (GSM8K, "The answer is 72, not 1072, no: 73"),
    "another letter": (AQUA, "The answer is (A)."),
    "no letter": (AQUA, "A train goes."),
    "several labels": (BOOLQ, "true or false"),
    "a part of a choice": (COLOURS, "red"),
    "a missing field": (TICKET, '{"amount": 12, "kind": {"name": "bill"}}'),
    "a field more": (TICKET, '{"amount": 12, "kind": {"name": "bill", "tags": ["a"]}, "x": 1}'),
    "cut JSON": (TICKET, '{"amount": 12, "kind": {"name": "bill", "tags": ["a"]}'),
    "true is not 1": ({"prompt": "x", "answer": {"a": 1}}, '{"a": true}'),
    "another case": ({"prompt": "x", "answer": "Haus"}, "haus"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_rule_follows_from_the_answer_and_accepts_it(name: str) -> None:
    row, form, text = RIGHT[name]
    rule = rule_of(row)
    assert rule.form == form
    assert rule.is_right(text)


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_refuses_other_answers(name: str) -> None:
    row, text = WRONG[name]
    assert not rule_of(row).is_right(text)


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({"prompt": "x"}, None, "must have an answer"),
        ({"prompt": "x", "completion": " "}, "exact", "must have an answer"),
        ({"prompt": "x", "answer": "1/2"}, "number", "must be a number"),
        ({"prompt": "x", "answer": "red"}, "json", "must be a JSON object or list"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "c"}, None, "one of its choices"),
        ({"prompt": "x", "answer": "c"}, "choice", "one of its choices"),
    ],
)
def test_a_row_without_an_answer_of_the_form_is_refused(row: dict[str, Any], form: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule_of(row, form)


VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)


@given(st.dictionaries(st.text(max_size=2), VALUES, min_size=1, max_size=3), st.text("abc :,.", max_size=9))
def test_an_object_is_found_wherever_it_stands(value: dict[str, Any], around: str) -> None:
    rule = AnswerRule("json", value)
    text = f"{around}{json.dumps(value)}{around}"
    assert rule.is_right(text)
