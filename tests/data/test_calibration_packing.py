"""Packing: every row gives a random piece before any gives more, and all tokens can be used."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.calibration import _packed
from shears.data.tokens import encode
from tests.data.test_calibration import TOKENIZER, calibrate, sequences_of

END = 256


def _rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _stream(source: Path, num_samples: int, sequence_length: int, seed: int = 0) -> list[int]:
    calibration = calibrate(source, seed=seed, num_samples=num_samples, sequence_length=sequence_length)
    return [token for sequence in sequences_of(calibration) for token in sequence]


def _texts(stream: list[int]) -> list[str]:
    return str(TOKENIZER.decode(stream)).split("<|end|>")


def _long(letter: str, length: int = 5000) -> str:
    return "".join(f"{letter}{number:03d}" for number in range(length // 4))


@pytest.mark.parametrize("seed", range(5))
def test_a_long_row_gives_one_piece_while_others_have_some(tmp_path: Path, seed: int) -> None:
    source = _rows(tmp_path / "rows.jsonl", [_long("x"), *(f"short row {number:02d}" for number in range(40))])
    pieces = _texts(_stream(source, 10, 40, seed))
    assert sum("x" in piece for piece in pieces) <= 1
    assert sum(len(piece) for piece in pieces if "x" in piece) < 40


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
