"""benchmarks.readings reads responses by both rules and counts right answers and missing strict ones."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import readings

ROWS: dict[str, list[tuple[str, str | float]]] = {
    "AQuA": [
        ("The answer is (C).", "C"),  # both right
        ("Because 2 > 1, the answer is (C).", "C"),  # the official rule reads B
        ("(A) or (B)", "A"),  # the strict one reads nothing
        ("The answer is (D).\n### Response:\nThe answer is (E).", "E"),  # both wrong: texts end there
    ],
    "SVAMP": [("The answer is 1,234.", "1234"), ("2 + 2 = 4", 4.0)],
    "gsm8k": [("The answer is 2/3", "0.667"), ("nothing", "5")],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        (tmp_path / name).mkdir()
        made = [{"instruction": "?", "output": output, "answer": answer} for output, answer in rows]
        (tmp_path / name / "test.json").write_text(json.dumps(made))
    return tmp_path


def test_each_rule_is_right_where_it_reads_the_answer(data: Path) -> None:
    file = data / "AQuA" / "test.json"
    assert readings.readings("aqua", file) == ([True, False, True, False], [True, True, False, False], 1)
    assert readings.readings("svamp", data / "SVAMP" / "test.json") == ([True, True], [True, True], 0)
    assert readings.readings("gsm8k", data / "gsm8k" / "test.json") == ([False, False], [True, False], 1)


def test_the_table_has_a_line_a_task(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["readings", "--data", str(data)])
    readings.main()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["task", "n", "official", "strict", "without a strict answer", "p"]
    assert [(line[0], line[1], *line[4:]) for line in lines[2:]] == [
        ("aqua", "4", "1", "1"), ("svamp", "2", "0", "1"), ("gsm8k", "2", "1", "0.5"),
    ]  # fmt: skip
    assert lines[2][2] == lines[2][3] == "50.0% (15.0% to 85.0%)"
