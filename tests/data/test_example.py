"""Any set of rows can be used: its columns are named, and ShareGPT's conversations are chats."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.calibration import calibration_batches, text_tokens
from shears.data.example import messages_of, renamed
from shears.data.examples import check_completions, check_rows, load_examples, to_example, tokenize
from shears.data.prompts import question_of
from shears.data.rows import read_rows
from shears.errors import InputError
from tests.tiny import tiny_tokenizer

TURNS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "2+2?"},
    {"from": "gpt", "value": "4"},
]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def test_conversations_are_the_same_tokens_and_labels_as_messages() -> None:
    """Every turn of the assistant carries the loss, up to its end mark."""
    tokenizer = tiny_tokenizer()
    chat = to_example({"conversations": TURNS}, "question", tokenizer)
    assert chat == to_example({"messages": MESSAGES}, "question", tokenizer)
    assert [segment.text for segment in chat.segments if segment.trained] == ["Hello<|end|>", "4<|end|>"]
    tokens = tokenize(chat, tokenizer)
    assert tokenizer.decode([label for label in tokens.labels if label >= 0]) == "Hello<|end|>4<|end|>"
    assert question_of({"conversations": TURNS}) == question_of({"messages": MESSAGES}) == "2+2?"


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("user", "user"), ("GPT", "assistant"), ("assistant", "assistant"), ("observation", "tool")],
)
def test_speakers_have_the_roles_of_messages(speaker: str, role: str) -> None:
    assert messages_of({"conversations": [{"from": speaker, "value": "a"}]}) == [{"role": role, "content": "a"}]
    assert messages_of({"conversations": [{"role": speaker, "content": "a"}]}) == [{"role": role, "content": "a"}]


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([{"from": "narrator", "value": "a"}], "turns from system, human, .* turn 1 is from 'narrator'"),
        ("hello", "must be a list of {from, value}, got 'hello'"),
        ([{"from": "human", "value": None}, {"from": "gpt", "value": "a"}], "must have text as content, turn 1"),
    ],
)
def test_conversations_of_another_form_are_refused(conversations: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_example({"conversations": conversations}, "question", tiny_tokenizer())
    question_of({"conversations": conversations})  # also asked of rows that are no examples


def test_a_conversation_calibrates(tmp_path: Path) -> None:
    fingerprints = [
        calibration_batches(source(tmp_path, row), tiny_tokenizer(), 1, 16, 1, 0).fingerprint
        for row in ({"conversations": TURNS}, {"messages": MESSAGES})
    ]
    assert fingerprints[0] == fingerprints[1]


def source(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_named_columns_stand_for_those_of_a_form(tmp_path: Path) -> None:
    path = source(tmp_path, {"question": "2+2?", "reply": "4", "messages": [], "prompt": "unused", "answer": "four"})
    (row,) = read_rows(path, {"instruction": "question", "output": "reply"})
    assert row == {"question": "2+2?", "reply": "4", "answer": "four", "instruction": "2+2?", "output": "4"}
    (example,) = load_examples(
        path, "question", tiny_tokenizer(), columns={"instruction": "question", "output": "reply"}
    )
    plain = {"instruction": "2+2?", "output": "4", "answer": "four"}
    assert example == to_example(plain, "question", tiny_tokenizer())


def test_other_columns_of_the_named_form_stay() -> None:
    assert renamed([{"prompt": "a", "reply": "b", "text": "c"}], {"completion": "reply"}, "-") == [
        {"prompt": "a", "reply": "b", "completion": "b"}
    ]
    assert renamed([{"prompt": "a", "solution": 1}], {"answer": "solution"}, "-")[0]["prompt"] == "a"
    assert renamed([{"q": "a"}, {"r": "b"}], {"prompt": "q"}, "-")[1] == {"r": "b", "prompt": None}


def test_text_may_have_another_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    path = source(tmp_path, {"content": "abc"})
    assert tokenizer.decode(text_tokens(path, tokenizer, {"text": "content"})) == "abc<|end|>"


def test_a_column_that_no_row_has_is_told_with_those_there_are(tmp_path: Path) -> None:
    path = source(tmp_path, {"question": "2+2?", "reply": "4"})
    with pytest.raises(InputError) as caught:
        read_rows(path, {"prompt": "qestion"})
    assert str(caught.value) == (
        f"columns must name columns of {path} (question, reply), got prompt=qestion; did you mean 'question'?"
    )


def test_rows_of_no_known_form_are_told_without_a_tokenizer(tmp_path: Path) -> None:
    path = source(tmp_path, {"prompt": "a", "completion": "b"}, {"question": "2+2?", "reply": "4"})
    with pytest.raises(InputError, match=r"row 2 of .* got question, reply; name yours with columns, such as prompt="):
        check_rows(path)
    check_rows(path, limit=1)
    check_rows(path, {"prompt": "question"})


def test_rows_without_any_completion_cannot_be_trained_on(tmp_path: Path) -> None:
    examples = load_examples(source(tmp_path, {"prompt": "a", "reply": "b"}), "question", tiny_tokenizer())
    with pytest.raises(InputError, match="at least one row of data must have a completion .* such as completion="):
        check_completions(examples, "data")


def test_columns_of_turns_make_a_chat(tmp_path: Path) -> None:
    path = source(tmp_path, {"ticket": "It burns", "fields": {"ünit": 1}, "prompt": "unused", "answer": "x"})
    (row,) = read_rows(path, {"user": "ticket", "assistant": "fields"})
    turns = [{"role": "user", "content": "It burns"}, {"role": "assistant", "content": '{"ünit": 1}'}]
    assert row == {"ticket": "It burns", "fields": {"ünit": 1}, "answer": "x", "messages": turns}
    assert renamed([{"q": "a", "s": "b"}], {"system": "s", "user": "q"}, "-")[0]["messages"] == [
        {"role": "system", "content": "b"},
        {"role": "user", "content": "a"},
    ]
    with pytest.raises(InputError, match="must name the user's column of a chat, got assistant; add user=COLUMN"):
        build(TrainConfig, "train", {"data": path, "columns": {"assistant": "fields"}})
