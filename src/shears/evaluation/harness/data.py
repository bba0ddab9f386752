"""The functions that the YAML tasks in tasks/ call: rows of the paper's sets for lm-eval, and scores of responses.

lm-eval calls `load` with the metadata of its command line, such as `--metadata '{"shears_data": "FOLDER"}'` for the
folder of `boolq/test.json` and the other files. Without it, the folder is the environment's SHEARS_DATA or the current
one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from shears.config.evaluate import ANSWER_FORMS, TEMPLATE
from shears.data.examples import choices_of
from shears.data.prompts import render_completion, render_prompt
from shears.data.rows import read_rows
from shears.errors import InputError
from shears.evaluation.tasks.answers import is_right, read_answers, response_of
from shears.evaluation.tasks.paper_tasks import LABELS, paper_row

FOLDERS = {
    "siqa": "social_i_qa",
    "arc-easy": "ARC-Easy",
    "arc-challenge": "ARC-Challenge",
    "obqa": "openbookqa",
    "aqua": "AQuA",
    "svamp": "SVAMP",
}
"""Folders of LLM-Adapters whose names differ from their task's."""


def load(
    task: str, shears_data: str | None = None, shears_template: str = TEMPLATE, **_: object
) -> dict[str, datasets.Dataset]:
    """Return the test split of a task of the paper: prompt, choices, gold (the right choice's index) and answer.

    Other metadata, such as the model's arguments that lm-eval adds, are ignored. InputError if the file is missing.
    """
    folder = Path(shears_data or os.environ.get("SHEARS_DATA", "."))
    file = folder / FOLDERS.get(task, task) / "test.json"
    if not file.is_file():
        raise InputError(
            f"task shears_{task.replace('-', '_')} needs the file {file}; name the folder above it as shears_data in "
            "--metadata, in the environment as SHEARS_DATA, or as --data of shears evaluate"
        )
    rows = [paper_row(task, row) for row in read_rows(str(file))]
    return {"test": datasets.Dataset.from_list([_document(task, row, shears_template) for row in rows])}


def _document(task: str, row: Mapping[str, Any], template: str) -> dict[str, Any]:
    texts, answer = choices_of(row)
    return {
        "task": task,
        "prompt": render_prompt(template, str(row["instruction"]), str(row.get("input") or "")),
        "choices": [render_completion(template, text) for text in texts],
        "gold": texts.index(answer) if answer in texts else -1,
        "answer": str(row["answer"]),
    }


def score(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return whether a generated response is right by the official rule (`acc`) and by the strict one."""
    task = document["task"]
    form = ANSWER_FORMS[task]
    answer = document["answer"]
    official, strict = read_answers(form, response_of(results[0]), LABELS.get(task, ()))
    right = float(answer.replace(",", "")) if form == "number" else answer
    return {"acc": float(is_right(official, right)), "acc_strict": float(is_right(strict, right))}
