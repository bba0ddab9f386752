"""The tables of the verbs: folded layers, commands that can be pasted, figures in their units, no markup."""

import io
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shears import compare
from shears.cli import tables
from shears.cli.tables import print_comparison
from tests.report.made import write_run

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROW: dict[str, Any] = {"metric": "accuracy", "value": 0.5, "n": 1319, "ci95": [0.112, 0.912], "sparsity": 0.5,
                       "nonzeros": 1e8, "adapter_parameters": 1e7}  # fmt: skip
Printed = Callable[..., list[str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Return what a function prints to a console of 80 columns, line by line."""

    def lines(function: Callable[..., None], *values: object) -> list[str]:
        file = io.StringIO()
        monkeypatch.setattr(tables, "console", Console(file=file, width=80, _environ={}))
        function(*values)
        return file.getvalue().splitlines()

    return lines


def _cells(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in lines if line.startswith("│")]


def test_equal_layers_share_a_row_and_kinds_that_do_not_fit_stand_below(printed: Printed) -> None:
    kinds = [*KINDS, "router"]
    rows = {str(layer): dict.fromkeys(kinds, 0.5) for layer in range(30)}
    rows["3"]["down_proj"] = 0.4
    data = {"path": "sparse", "kind": "sparse model", "sparsity": 0.5, "data_sha256": None,
            "sparsity_by_layer": dict.fromkeys(rows, 0.5), "sparsity_by_kind": dict.fromkeys(kinds, 0.25),
            "sparsity_by_linear": rows}  # fmt: skip
    lines = printed(tables.print_inspection, data)
    assert lines[:2] == ["sparse: sparse model", "  sparsity: 0.5"]
    cells = _cells(lines)
    assert [row[0] for row in cells] == ["0-2", "3", "4-29", "all", "0-29", "all"]
    assert cells[1][1:] == ["50.0%"] * 6 + ["40.0%", "50.0%"]
    assert cells[-1] == ["all", "50.0%"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("names", "folders", "command"),
    [
        (["dense", "sparse + sub-adapter"], ["sub_adapter", "package"], "RUN/sparse --adapter RUN/sub_adapter"),
        (["dense", "sparse", "merged"], ["sub_adapter", "package", "merged"], "RUN/merged"),
        (["dense", "sparse"], ["sub_adapter"], "RUN/sparse"),
        ([], ["package"], "RUN/package"),
        ([], ["sub_adapter"], "RUN/sparse --adapter RUN/sub_adapter"),
    ],
)
def test_the_suggested_command_uses_the_last_model_of_the_run_and_can_be_pasted(
    names: list[str], folders: list[str], command: str, tmp_path: Path, printed: Printed
) -> None:
    run = tmp_path / "my run"
    for folder in folders:
        (run / folder).mkdir(parents=True)
    models = [{"name": name, **ROW} for name in names]
    lines = printed(tables.print_summary, {"task": "number", "data": "[bold]d[/b]", "models": models}, run)
    assert not names or "number on [bold]d[/b] (n = 1319)" in " ".join(lines)
    words = shlex.split(lines[-1].partition("Try it: ")[2])
    assert words == [word.replace("RUN", str(run)) for word in f"shears generate {command} --prompt ...".split()]


def test_readings_cut_answers_and_questions_seen_in_training_are_printed(tmp_path: Path, printed: Printed) -> None:
    strict = {"accuracy_strict": 0.409, "accuracy_strict_low": 0.1, "accuracy_strict_high": 0.8}
    details = {**strict, "cut": 12.0, "seen_in_training": 3.0, "accuracy_unseen": 0.25}
    models = [{"name": "dense", **ROW}, {"name": "sparse + sub-adapter", **ROW, "details": details}]
    gap = {"n": 100, "value": -0.03, "ci95": [-0.098, 0.039], "won": 7, "lost": 10, "p": 0.5}
    lead = {"name": "sparse", "against": "dense", "untrained": True, "difference": gap}
    lines = printed(tables.print_summary, {"task": "gsm8k", "data": "d", "models": models, "lead": lead}, tmp_path)
    assert lines[:3] == [
        "sparse minus dense (not trained on the task):",
        "  -3.0 points, 95 % interval -9.8 to +3.9",
        "  of 100 questions, only the first answers 7 correctly, only the second 10",
    ]
    sentence = (
        "3 of the 1,319 test questions also occur in the training data of sparse + sub-adapter; on the others the "
    )
    assert f"{sentence}accuracy is 25.0%." in lines
    assert "12 of the 1,319 answers of sparse + sub-adapter were cut at the longest length." in lines
    assert "40.9%" in "".join(lines)


def test_a_comparison_is_two_tables_and_says_what_its_columns_are(tmp_path: Path, printed: Printed) -> None:
    lines = printed(print_comparison, compare([str(write_run(tmp_path / "run"))]))
    cells = _cells(lines)
    assert cells[0][:4] == ["dense", "1", "50.0%", "15.0% to 85.0%"]
    assert cells[3][:3] == ["sparse", "-25.0", "-71.7 to +38.3"]
    assert "p is the two-sided p value (McNemar, mid-p)." in lines
    assert max(map(len, lines[:-2])) <= 80
