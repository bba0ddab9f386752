"""What the tasks in tasks/ call: rows of the paper's sets for lm-eval, and how generated answers are scored.

lm-eval calls `load` with the metadata of its command line: `--metadata '{"shears_data": "FOLDER"}'` says where
`boolq/test.json` and the like are; without it the environment's SHEARS_DATA, or the current folder.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from shears.config.paper import ANSWER_FORMS, TEMPLATE
from shears.data.examples import choices_of
from shears.data.paper_rows import paper_row
from shears.data.prompts import render_completion, render_prompt
from shears.data.rows import read_rows
from shears.errors import InputError
from shears.evaluation.tasks.extraction import READERS, is_right, response_of
from shears.evaluation.tasks.paper_tasks import LABELS

FILES = {
    "siqa": "social_i_qa", "arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge", "obqa": "openbookqa",
    "aqua": "AQuA", "svamp": "SVAMP",
}  # fmt: skip
"""Folders of LLM-Adapters whose names are not the task's."""


def load(
    task: str, shears_data: str | None = None, shears_template: str = TEMPLATE, **_: object
) -> dict[str, datasets.Dataset]:
    """Return the test split of a task of the paper: columns prompt, choices, gold (a choice's index) and answer.

    Other metadata (lm-eval adds its model's arguments) are left alone. InputError where the file is not there.
    """
    folder = Path(shears_data or os.environ.get("SHEARS_DATA", "."))
    file = folder / FILES.get(task, task) / "test.json"
    if not file.is_file():
        raise InputError(
            f"task shears_{task.replace('-', '_')} needs the file {file}; name the folder above it as shears_data in "
            "--metadata, in the environment as SHEARS_DATA, or as --data of shears evaluate"
        )
    rows = [paper_row(task, row) for row in read_rows(str(file))]
    return {"test": datasets.Dataset.from_list([_document(task, row, shears_template) for row in rows])}


def _document(task: str, row: Mapping[str, Any], template: str) -> dict[str, Any]:
    texts, answer = choices_of(row)
    choices = [render_completion(template, text) for text in texts]
    return {
        "task": task,
        "prompt": render_prompt(template, str(row["instruction"]), str(row.get("input") or "")),
        "choices": choices,
        "gold": texts.index(answer) if answer in texts else -1,
        "answer": str(row["answer"]),
    }


def score(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return whether a generated response is right by the official rule (`acc`) and by the strict one."""
    task = document["task"]
    form, answer = ANSWER_FORMS[task], document["answer"]
    official, strict = READERS[form](response_of(results[0]), LABELS.get(task, ()))
    right = float(answer.replace(",", "")) if form == "number" else answer
    return {"acc": float(is_right(official, right)), "acc_strict": float(is_right(strict, right))}
