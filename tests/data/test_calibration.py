"""Calibration sequences: full, drawn without overlap, reproducible, and ready token ids left as they are."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shears.config.fields import TemplateName
from shears.data.calibration import Calibration, _packed, calibration_batches, text_tokens
from shears.data.examples import load_examples, tokenize_all
from shears.data.tokens import encode
from shears.errors import InputError
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def calibrate(source: Path | str, seed: int = 0, **changes: Any) -> Calibration:
    options = {"num_samples": 6, "sequence_length": 20, "batch_size": 4, **changes}
    return calibration_batches(str(source), TOKENIZER, seed=seed, **options)


def sequences_of(calibration: Calibration) -> list[list[int]]:
    return [row for batch in calibration.batches for row in batch.tolist()]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number:04d}" for number in range(100)))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    kinds: list[dict[str, Any]] = [
        {"text": "plain text of a row"},
        {"prompt": "Question: 1+1?", "completion": " 2"},
        {"instruction": "Say yes", "output": "yes"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in kinds * 5))
    return path


def test_windows_of_a_text_are_full_and_do_not_overlap(text: Path) -> None:
    calibration = calibrate(text)
    sequences = sequences_of(calibration)
    assert [tuple(batch.shape) for batch in calibration.batches] == [(4, 20), (2, 20)]
    whole = text_tokens(str(text), TOKENIZER)
    starts = [start for sequence in sequences for start in range(len(whole)) if whole[start : start + 20] == sequence]
    assert len(starts) == 6
    assert all(abs(a - b) >= 20 for a in starts for b in starts if a != b)


@pytest.mark.parametrize("kind", ["text", "rows"])
def test_the_seed_decides_what_is_drawn_and_nothing_else_does(kind: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    first, again, other = calibrate(source), calibrate(source, batch_size=1), calibrate(source, seed=1)
    assert sequences_of(first) == sequences_of(again)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_rows_of_every_form_are_packed_with_an_end_between_them(rows: Path) -> None:
    sequences = sequences_of(calibrate(rows, sequence_length=40))
    text = str(TOKENIZER.decode([token for sequence in sequences for token in sequence]))
    assert len(sequences) == 6
    assert all(len(sequence) == 40 for sequence in sequences)
    for piece in text.split("<|end|>")[:-1]:
        assert piece in {
            "plain text of a row",
            "Question: 1+1? 2",
            "<user>Say yes",
            "<assistant>yes",
            "<user>hi",
            "<assistant>ho",
        }


@pytest.mark.parametrize("num_samples", [1, 4, 99])
def test_ready_token_ids_are_all_used_as_they_are_in_order(tmp_path: Path, num_samples: int) -> None:
    ids = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11], [12, 13, 14]]
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    calibration = calibrate(path, seed=3, num_samples=num_samples, batch_size=2)
    expected = [[[1, 2, 3], [4, 5, 6]], [[7, 8]], [[9, 10, 11], [12, 13, 14]]]
    assert [batch.tolist() for batch in calibration.batches] == expected
    assert all(batch.dtype == torch.int64 for batch in calibration.batches)


@pytest.mark.parametrize("kind", ["text", "rows"])
def test_of_a_short_text_all_whole_sequences_are_taken_with_a_warning(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    source = request.getfixturevalue(kind)
    there = len(text_tokens(str(source), TOKENIZER)) // 20
    with caplog.at_level(logging.WARNING):
        taken = sequences_of(calibrate(source, num_samples=100))
    assert [len(ids) for ids in taken] == [20] * there
    assert f"{source} has only {there} of the 100 sequences of 20 tokens" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("bytes.txt", b"\xff\xfe", "utf-8"),
        ("short.txt", b"few", "at least one sequence of 20 tokens, the text has 3 tokens; give more text"),
        ("rows.jsonl", b'{"label": 1}\n', "column text or those of examples"),
        ("number.jsonl", b'{"text": 5}\n', "column text or those of examples"),
        ("ids.jsonl", b'{"input_ids": [1]}\n{"input_ids": []}\n', "row 2 of"),
        ("ids.jsonl", b'{"input_ids": [1, -2]}\n', "row 1 of"),
        ("ids.jsonl", b'{"input_ids": [1, 2], "attention_mask": [1, 0]}\n', "must have no padding, row 1"),
    ],
)
def test_unusable_text_is_an_error(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        calibrate(tmp_path / name)


def test_ready_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n')
    assert sequences_of(calibration_batches(str(path), None, 8, 8, 1, 0)) == [[1, 2]]
    (tmp_path / "text.txt").write_text("words " * 99)
    with pytest.raises(InputError, match="needs a tokenizer.*input_ids"):
        calibration_batches(str(tmp_path / "text.txt"), None, 8, 8, 1, 0)


Rows = Sequence[dict[str, Any]]


def _jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    tmp_path: Path, trained: TemplateName | None, has_chat: bool, template: str
) -> None:
    """The tokens are those that a training in the template reads; plain text and chats stay as they are."""
    tokenizer = tiny_tokenizer()
    if not has_chat:
        tokenizer.chat_template = None
    rows = [{"instruction": "Add", "output": "two", "system": "be kind"}, {"instruction": "Say", "output": "yes"}]
    path = str(_jsonl(tmp_path / "rows.jsonl", rows))
    read = tokenize_all(load_examples(path, template, tokenizer), tokenizer, 512)
    count = sum(len(row.input_ids) for row in read)
    drawn = calibration_batches(path, tokenizer, count, 1, 1, 0, trained=trained)
    tokens = [int(token) for batch in drawn.batches for token in batch.flatten()]
    orders = [[token for row in order for token in row.input_ids] for order in (read, read[::-1])]
    assert tokens in orders


END = 256


def _texts(stream: list[int]) -> list[str]:
    return str(TOKENIZER.decode(stream)).split("<|end|>")


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    num_samples=st.integers(1, 12),
    sequence_length=st.integers(2, 24),
    seed=st.integers(0, 9),
)
def test_no_row_gives_more_sequences_than_needed(
    lengths: list[int], num_samples: int, sequence_length: int, seed: int
) -> None:
    texts = [chr(ord("a") + number) * length for number, length in enumerate(lengths)]
    rows = [[*ids, END] for ids in encode(texts, TOKENIZER)]
    packed = _packed(iter(rows), [END], num_samples, sequence_length, random.Random(seed))
    needed, there = num_samples * sequence_length, sum(length + 1 for length in lengths)
    assert len(packed) >= min(needed, there)
    pieces = [len(piece) + 1 for piece in _texts(packed)[:-1]]
    assert packed[-1] == END
    assert sum(pieces) == len(packed)
    most = -(-max(pieces) // sequence_length)
    if most > 1:  # then a sequence less of every row would not have been enough
        assert len(pieces) == len(rows)
        assert sum(min(length + 1, (most - 1) * sequence_length) for length in lengths) < needed
