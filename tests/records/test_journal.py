"""A journal that a kill cut at any byte holds a prefix of its rows, and goes on."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.records.artifacts import append_row, read_rows

ROWS = st.lists(
    st.dictionaries(st.text(max_size=4), st.text() | st.integers() | st.lists(st.text(max_size=3)), max_size=3),
    max_size=5,
)


@settings(max_examples=40)  # each row is flushed to the disk
@given(ROWS, ROWS, st.data())
def test_cut_at_any_byte_a_prefix_is_read_and_appending_goes_on(before: Any, after: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "rows.jsonl"
        for row in before:
            append_row(journal, row)
        whole = journal.read_bytes() if before else b""
        cut = data.draw(st.integers(0, len(whole)))
        journal.write_bytes(whole[:cut])
        num_whole = whole[:cut].count(b"\n")
        assert read_rows(journal) == before[:num_whole]
        for row in after:
            append_row(journal, row)
        assert read_rows(journal) == before[:num_whole] + after


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"half', b"[" * 100_000, b""])
def test_a_line_that_is_not_json_is_left_out(line: bytes, tmp_path: Path) -> None:
    journal = tmp_path / "rows.jsonl"
    journal.write_bytes(b'{"a": 1}\n' + line + b'\n{"b": 2}\n')
    assert read_rows(journal) == [{"a": 1}, {"b": 2}]
