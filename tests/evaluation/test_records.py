"""An evaluation that was killed goes on with the texts it has, and ends with the bytes of an undisturbed one."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.evaluation.generate import Decoder
from shears.evaluation.records import TextJournal, WrittenText, journal_path
from shears.evaluation.run import evaluate
from tests.tiny import save_tiny

OPTIONS: dict[str, Any] = {
    "task": "mawps", "data": "rows.jsonl", "max_new_tokens": 4, "num_beams": 2, "batch_size": 2, "precision": "fp32",
}  # fmt: skip
ROWS = "".join(f'{{"instruction": "How many are {n} and {n * n}?", "answer": "{n + n * n}.0"}}\n' for n in range(7))


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(ROWS)
    return save_tiny(tmp_path / "base")


def _spied(monkeypatch: pytest.MonkeyPatch, until: int) -> list[int]:
    """Count the batches generated; die in front of the batch `until`."""
    taken: list[int] = []
    generate = Decoder._continue

    def spy(self: Decoder, rows: Any, *others: Any) -> list[WrittenText]:
        if len(taken) == until:
            raise Killed
        taken.append(len(rows))
        return generate(self, rows, *others)

    monkeypatch.setattr(Decoder, "_continue", spy)
    return taken


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(str(base), "whole.json", **OPTIONS)
    with monkeypatch.context() as patch:
        _spied(patch, until=2)
        with pytest.raises(Killed):
            evaluate(str(base), "killed.json", **OPTIONS)
    partial = journal_path(Path("killed.json"))
    assert not Path("killed.json").exists()
    with partial.open("a") as file:
        file.write('{"numbers": [0, 1], "te')  # the kill hit a line half-way
    with monkeypatch.context() as patch:
        assert _spied(patch, until=9) == []
        taken = _spied(patch, until=9)
        evaluate(str(base), "killed.json", **OPTIONS)
    assert taken == [2, 1]  # of batches of 2, 2, 2 and 1, two were there
    assert Path("killed.json").read_bytes() == Path("whole.json").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("change", [{"max_new_tokens": 5}, {"template": "question"}, {"num_beams": 1}])
def test_texts_of_another_evaluation_are_not_taken(
    base: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _spied(patch, until=3)
        with pytest.raises(Killed):
            evaluate(str(base), "figures.json", **OPTIONS)
    taken = _spied(monkeypatch, until=9)
    evaluate(str(base), "figures.json", backend="transformers", **{**OPTIONS, **change})
    assert len(taken) == 4


def test_texts_that_ended_by_other_settings_are_not_taken(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees texts that do not end may stop, mend where they end, and start the same command again."""
    with monkeypatch.context() as patch:
        _spied(patch, until=3)
        with pytest.raises(Killed):
            evaluate(str(base), "figures.json", **OPTIONS)
    settings = base / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [256, 10]}))
    taken = _spied(monkeypatch, until=9)
    evaluate(str(base), "figures.json", **OPTIONS)
    assert len(taken) == 4


def test_a_journal_whose_first_line_is_torn_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "figures.json.partial"
    path.parent.mkdir()
    path.write_text('{"config": {"ta\n{"numbers": [0], "texts": ["a"]}\n')
    journal = TextJournal(path, {"config": 1})
    assert journal.get([0]) is None
    journal.put([0], [WrittenText("b\n", True)])
    again = TextJournal(path, {"config": 1})
    assert again.get([0]) == [("b\n", True)]
    assert again.get([1]) is None
    again.close()
    assert not path.exists()


def test_bytes_that_are_no_text_are_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "figures.json.partial"
    TextJournal(path, {"config": 1}).put([0], [WrittenText("a", False)])
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n{"numbers": [1], "texts": ["b"], "cut": [true]}\n')
    again = TextJournal(path, {"config": 1})
    assert (again.get([0]), again.get([1])) == ([("a", False)], [("b", True)])
    path.write_bytes(b"\xff\xfe")
    assert TextJournal(path, {"config": 1}).get([0]) is None


NO_BATCHES = (
    '{"numbers": 3, "texts": [], "cut": []}',
    '{"numbers": [0, 1], "texts": ["a"], "cut": [true]}',
    '{"numbers": [[0]], "texts": ["a"], "cut": [true]}',
    '{"numbers": [0], "texts": [1], "cut": [true]}',
    '{"numbers": [0], "texts": ["a"], "cut": [1]}',
    '{"numbers": [0], "texts": ["a"]}',
)


@pytest.mark.parametrize("line", NO_BATCHES)
def test_a_line_that_is_no_batch_is_left_out(line: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json.partial"
    TextJournal(path, {"task": "mawps"}).put([2], [WrittenText("two", False)])
    with path.open("a") as file:
        file.write(f"{line}\n")
    journal = TextJournal(path, {"task": "mawps"})
    assert journal.get([2]) == [("two", False)]
    assert [journal.get(numbers) for numbers in ([0], [0, 1])] == [None, None]
