"""The twelve tasks of the Shears paper: their rows (paper_tasks.yaml), right answers and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shears.config.evaluate_options import ANSWER_FORMS
from shears.data.answer_reading import finite, official_label
from shears.data.examples import Example, row_named
from shears.data.rows import Row
from shears.data.templates import render_completion
from shears.errors import InputError, option

LETTER_COMPLETION = "The answer is ({})."  # as the papers' training rows of AQuA end
PAPER_TASKS: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
LABELS: Mapping[str, Sequence[str]] = {name: tuple(task.get("labels", ())) for name, task in PAPER_TASKS.items()}
"""The labels or letters to choose from; none for a task whose answer is a number."""
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def paper_row(task: str, row: Mapping[str, Any]) -> Row:
    """Return a row as `instruction` and `answer`; ValueError for columns of neither form, or a missing answer.

    Rows of LLM-Adapters (an instruction and its answer) pass as they are; those of the hub's data set are
    written in the same words.
    """
    if "instruction" in row and "answer" in row:
        return dict(row)
    columns = PAPER_TASKS[task]["columns"]
    if not all(column in row for column in columns):
        got = ", ".join(map(str, row)) or "none"
        raise ValueError(
            f"a row of {task} needs the columns instruction and answer, or {', '.join(columns)}; got {got}"
        )
    with option(f"the columns {', '.join(columns)}"):
        instruction, answer = (
            ENVIRONMENT.from_string(PAPER_TASKS[task][part]).render(row) for part in ("instruction", "answer")
        )
    _, listed, choices = instruction.rpartition("Answer format: ")
    if listed and answer not in choices.split("/"):  # e.g. of test splits without labels
        raise ValueError(f"a row of {task} needs an answer among its choices, none is {answer}")
    return {"instruction": instruction, "input": "", "answer": answer}


def paper_answers(task: str, examples: Sequence[Example]) -> list[float | str]:
    """Return the right answers; InputError for the first row without one of the task's form."""
    answers: list[float | str] = []
    for number, example in enumerate(examples, start=1):
        text = (example.answer or "").strip()
        with row_named(number, "the data"):
            if ANSWER_FORMS[task] == "number":
                answer: float | str | None = finite(text.replace(",", ""))
            elif ANSWER_FORMS[task] == "letter":
                answer = text if text in LABELS[task] else None
            else:
                answer = official_label(text, LABELS[task])
            if answer is None:
                raise ValueError(
                    f"the answer to {task} must be {' or '.join(LABELS[task]) or 'a number'}, got {text!r}"
                )
        answers.append(answer)
    return answers


def with_choices(task: str, examples: Sequence[Example], template: str) -> list[Example]:
    """Return the examples with their choices, written as completions of the template.

    InputError for a task whose answer is a number.
    """
    if ANSWER_FORMS[task] == "number":
        raise InputError(f"protocol choices needs a task with choices, and {task} asks for a number; use generate")
    if ANSWER_FORMS[task] == "label":
        return list(examples)  # their instructions end with the choices
    choices = {letter: render_completion(template, LETTER_COMPLETION.format(letter)) for letter in LABELS[task]}
    return [
        replace(example, choices=tuple(choices.values()), answer=choices[str(answer)])
        for example, answer in zip(examples, paper_answers(task, examples), strict=True)
    ]
