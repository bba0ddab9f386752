"""Examples: what carries the loss, what the choices are, and that a prompt is the same tokens everywhere."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.examples import Example, check_rows, prompt_of, to_example, tokenize, tokenize_all
from shears.data.tokens import Segment, prompt_ids
from shears.errors import InputError
from tests.tiny import END, starting_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def _trained_text(example: Example) -> str:
    tokens = tokenize(example, TOKENIZER)
    return str(TOKENIZER.decode([label for label in tokens.labels if label != -100]))


def test_a_prompt_and_completion_row_is_taken_letter_by_letter() -> None:
    example = to_example({"prompt": "Q:  ", "completion": " 3 ", "answer": 3}, "question", TOKENIZER)
    assert example == Example((Segment("Q:  ", False), Segment(" 3 ", True)), "3")


def test_an_instruction_row_goes_through_the_template() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "\n3", "answer": 3.0}
    example = to_example(row, "question", TOKENIZER)
    assert prompt_of(example) == "Question: Add.\n1 2\nAnswer:"
    assert example.segments[-1] == Segment(" 3", True)
    assert example.answer == "3.0"
    assert to_example(row, "alpaca", TOKENIZER).segments[-1] == Segment("3", True)


@given(prompt=st.text(min_size=1, max_size=20), completion=st.text(min_size=1, max_size=20))
def test_a_prompt_is_the_same_tokens_alone_and_in_front_of_its_completion(prompt: str, completion: str) -> None:
    tokens = tokenize(Example((Segment(prompt, False), Segment(completion, True))), TOKENIZER)
    alone = prompt_ids([prompt], TOKENIZER)[0]
    assert tokens.input_ids[: len(alone)] == alone
    assert [label != -100 for label in tokens.labels] == [index >= len(alone) for index in range(len(tokens.labels))]


def test_the_start_of_sequence_comes_once_where_the_tokenizer_puts_one() -> None:
    tokenizer = starting_tokenizer()
    example = to_example({"prompt": "ab", "completion": "cd"}, "question", tokenizer)
    tokens = tokenize(example, tokenizer)
    assert tokens.input_ids[0] == tokenizer.bos_token_id
    assert tokens.input_ids.count(tokenizer.bos_token_id) == 1
    assert tokens.labels[0] == -100
    assert prompt_ids(["ab"], tokenizer)[0] == tokens.input_ids[:3]
    [typed] = prompt_ids(["<s>ab"], tokenizer)
    assert typed.count(tokenizer.bos_token_id) == 1  # what a person types is text
    assert tokenizer.decode(typed[1:]) == "<s>ab"


def test_every_assistant_turn_of_a_chat_is_trained_up_to_its_end_mark() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "u2"},
        {"role": "assistant", "content": "a2"},
        {"role": "user", "content": "left unanswered"},
    ]
    example = to_example({"messages": messages}, "question", TOKENIZER)
    assert "".join(segment.text for segment in example.segments) == str(
        TOKENIZER.apply_chat_template(messages[:-1], tokenize=False)
    )
    assert _trained_text(example) == f"a1{END}a2{END}"
    assert prompt_of(example).endswith("u2" + END + "<assistant>")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "u"}]}, "assistant turn"),
        ({"messages": "hello"}, "list of"),
        ({"text": "x", "label": 1}, "prompt and completion.*got text, label"),
        ({}, "got none"),
        ({"prompt": [{"role": "user"}], "completion": "x"}, "prompt must be text, got list"),
        ({"prompt": "a", "choices": 3, "answer": 0}, "choices must be a list, got '3'"),
        ({"prompt": "a", "choices": "ab", "answer": 0}, "choices must be a list, got 'ab'"),
        ({"prompt": "a", "choices": {"x": 1}, "answer": 0}, "choices must be a list"),
        ({"prompt": "a", "choices": ["x", None], "answer": 0}, "a choice must be text, got NoneType"),
    ],
)
def test_a_row_without_known_columns_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_example(row, "question", TOKENIZER)


def test_a_chat_needs_a_template_that_does_not_rewrite_its_past() -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}] * 2
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="formats earlier turns differently"):
        to_example({"messages": messages}, "question", tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        to_example({"messages": messages}, "question", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="with a chat template"):
        to_example({"messages": messages}, "question", tokenizer)


@pytest.mark.parametrize(
    ("choices", "answer", "chosen"),
    [
        (["red", "blue"], 1, " blue"),
        (["red", "blue"], "B", " blue"),
        (["red", "blue"], "blue", " blue"),
        (["red", "blue"], "1", " blue"),
        (["red", "blue"], 1.0, " blue"),  # so tables write it in a column with gaps
        (["red", "blue"], 0.5, None),
        (["red", "blue"], "ß", None),  # two capital letters
        (["red", "blue"], "9" * 5000, None),
        ([True, False], False, " false"),
        (["1", "0"], "0", " 0"),  # a text is a choice before it is an index
        (["1", "0"], 0, " 1"),  # a number is an index
        (["B", "A"], "A", " A"),
        (["true", "false"], False, " false"),
        ([" 1", " 2"], "1", " 1"),  # spaces do not make a text an index
        ([" a", "a"], "a", " a"),
        (["red", "blue"], "green", None),
        (["red", "blue"], 2, None),
        (["red", "blue"], None, None),
    ],
)
def test_the_answer_among_choices_is_a_text_a_letter_or_an_index(
    choices: list[Any], answer: object, chosen: str | None
) -> None:
    example = to_example({"instruction": "Which?", "choices": choices, "answer": answer}, "question", TOKENIZER)
    assert example.answer == chosen
    assert example.segments[-1].text == (chosen or "")


def test_long_and_empty_examples_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a" * 50, "completion": "b"},
        {"prompt": "a", "completion": ""},
    ]
    examples = [to_example(row, "question", TOKENIZER) for row in rows]
    with caplog.at_level(logging.WARNING):
        assert len(tokenize_all(examples, TOKENIZER, max_length=10)) == 1
    assert "left out 2 of 3 examples: 1 longer than 10 tokens and 1 without a completion" in caplog.text
    with pytest.raises(InputError, match=r"at least one example .* 2 longer"):
        tokenize_all(examples[1:2] * 2, TOKENIZER, max_length=10)


def test_rows_of_no_known_form_are_told_without_a_tokenizer(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"question": "2+2?", "reply": "4"}]
    path = str(tmp_path / "rows.jsonl")
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"row 2 of .* got question, reply; name yours, such as --columns prompt="):
        check_rows(path)
    check_rows(path, limit=1)
    check_rows(path, {"prompt": "question"})
