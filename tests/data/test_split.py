"""Rows are drawn into parts of the wanted shares; rows of one question stay together."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.rows import parse_shares, split_rows
from shears.data.templates import question_id
from shears.errors import InputError
from tests.conftest import Call


@given(questions=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=40, max_size=80), seed=st.integers(0, 5))
def test_every_row_is_in_one_part_and_no_question_in_two(questions: list[str], seed: int) -> None:
    rows = [{"prompt": f"What is {q}?", "completion": str(index)} for index, q in enumerate(questions)]
    try:
        parts = split_rows(rows, (80, 20), seed)
    except InputError:
        most = max(map(questions.count, set(questions)))
        assert most > 0.2 * len(questions)  # the rows of one question, drawn last, are more than the test part's share
        return
    assert sorted(row["completion"] for part in parts.values() for row in part) == sorted(r["completion"] for r in rows)
    train, test = ({question_id(row["prompt"]) for row in parts[name]} for name in ("train", "test"))
    assert not train & test
    assert split_rows(rows, (80, 20), seed) == parts


def test_parts_have_their_shares_and_keep_the_order() -> None:
    rows = [{"prompt": f"Question {index}", "completion": "x"} for index in range(200)]
    parts = split_rows(rows, parse_shares("80/10/10"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 160, "validation": 20, "test": 20}
    assert all(part == sorted(part, key=rows.index) for part in parts.values())
    assert split_rows(rows, (80, 20), seed=1)["test"] != split_rows(rows, (80, 20), seed=2)["test"]


@pytest.mark.parametrize("text", ["80/10", "80", "100/0", "50/25/15/10", "a/b", "110/-10", ""])
def test_shares_must_be_two_or_three_that_make_a_hundred(text: str) -> None:
    with pytest.raises(InputError, match="--split must be per cent whose sum is 100, such as 80/10/10 or 80/20, got"):
        parse_shares(text)


def test_data_writes_the_parts_as_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"ticket": f"Ticket {index}", "fields": {"id": index}}) + "\n" for index in range(20))
    Path("rows.jsonl").write_text("".join(lines))
    command = (
        "data",
        "rows.jsonl",
        "--columns",
        "user=ticket,assistant=fields",
        "--split",
        "80/20",
        "--output",
        "rows",
    )
    assert call(*command)[:2] == (0, "rows/train.jsonl: 16 rows\nrows/test.jsonl: 4 rows\n")
    written = [json.loads(line) for line in Path("rows/test.jsonl").read_text().splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in written] == [["user", "assistant"]] * 4
    assert sorted(path.name for path in Path("rows").iterdir()) == ["test.jsonl", "train.jsonl"]
    code, _, error = call(*command)
    assert (code, "the output must not exist yet, got rows" in error) == (2, True)
    code, _, error = call("data", "rows.jsonl", "--columns", "user=ticket", "--split", "80/20")
    assert (code, "--split and --output go together" in error) == (2, True)
    code, _, error = call("data", "rows.jsonl", "--columns", "user=ticket", "--split", "98/1/1", "--output", "few")
    assert code == 2
    assert not Path("few").exists()
