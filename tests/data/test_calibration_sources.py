"""Sources of calibration: chats, training data, hub sets, saved folders."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shears.config.fields import TemplateName
from shears.data.calibration import calibration_batches, text_tokens
from shears.data.examples import load_examples, tokenize_all
from tests.tiny import tiny_tokenizer

Rows = Sequence[dict[str, Any]]
CHATS: Rows = [
    {"messages": [{"role": "user", "content": f"{number}+1?"}, {"role": "assistant", "content": str(number + 1)}] * 2}
    for number in range(20)
]
LAST_TURN = tiny_tokenizer()  # a template that closes the assistant's turns only
LAST_TURN.chat_template = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
)


def _jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("turns", "closed"),
    [
        ([{"role": "user", "content": "hi"}], False),
        ([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}], False),
        ([*CHATS[0]["messages"], {"role": "user", "content": "and then?"}], False),
        (CHATS[0]["messages"], True),
    ],
)
def test_a_chat_needs_no_assistant_and_keeps_every_turn(tmp_path: Path, turns: Rows, closed: bool) -> None:
    ids = text_tokens(str(_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])), LAST_TURN)
    rendered = str(LAST_TURN.apply_chat_template(list(turns), tokenize=False))
    assert rendered.endswith("<|end|>") is closed
    assert str(LAST_TURN.decode(ids)) == (rendered if closed else rendered + "<|end|>")


@pytest.mark.parametrize(
    ("trained", "has_chat", "template"),
    [
        ("chat", True, "chat"),
        ("question", True, "question"),
        ("alpaca", True, "question"),
        (None, True, "chat"),
        (None, False, "question"),
    ],
)
def test_instructions_are_calibrated_on_as_the_model_is_trained_or_else_asked(
    tmp_path: Path, trained: TemplateName | None, has_chat: bool, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens are those that a training in the template reads; plain text and chats stay as they are."""
    tokenizer = tiny_tokenizer()
    if not has_chat:
        tokenizer.chat_template = None
    rows = [{"instruction": "Add", "output": "two", "system": "be kind"}, {"instruction": "Say", "output": "yes"}]
    path = str(_jsonl(tmp_path / "rows.jsonl", rows))
    read = tokenize_all(load_examples(path, template, tokenizer), tokenizer, 512)
    count = sum(len(row.input_ids) for row in read)
    with caplog.at_level(logging.INFO, "shears"):
        drawn = calibration_batches(path, tokenizer, count, 1, 1, 0, trained=trained)
    tokens = [int(token) for batch in drawn.batches for token in batch.flatten()]
    orders = [[token for row in order for token in row.input_ids] for order in (read, read[::-1])]
    assert tokens in orders
    told = [line for line in caplog.messages if "instructions of" in line]
    assert told == [f"instructions of {path} are rendered in the template {template}"]
