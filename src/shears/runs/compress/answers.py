"""How many of the rows' answers a model has right, by the rule that fits the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shears.data.rows import read_rows
from shears.data.rules import RuleForm, rule_of
from shears.errors import InputError
from shears.evaluation.run import evaluate
from shears.models.ref import AnyModel

TASKS: Mapping[RuleForm, str] = {"number": "number", "choice": "choices", "json": "json", "exact": "exact"}


def task_of_rows(source: str) -> str:
    """Return the task that judges these rows: that of their rule, exact text where rows differ.

    InputError for a row without an answer.
    """
    forms = set()
    for number, row in enumerate(read_rows(source), start=1):
        try:
            forms.add(rule_of(row).form)
        except InputError as error:
            raise InputError(f"row {number} of {source}: {error}") from None
    return TASKS[forms.pop()] if len(forms) == 1 else "exact"


def answers_of(model: AnyModel, rows: Path) -> dict[str, Any]:
    """Return task, accuracy, its 95 % interval, the number of rows, details, and 0 or 1 of each row.

    A package is asked in the template of its training, which its record names, any other model in
    its own best form.
    """
    measured = evaluate(model, task=task_of_rows(str(rows)), data=str(rows), device="cpu")
    return {
        "task": measured.task,
        "accuracy": measured.value,
        "ci95": list(measured.ci95),
        "n": measured.n,
        "details": measured.details,
        "right": "".join("01"[bool(record["correct"])] for record in measured.records),
    }
