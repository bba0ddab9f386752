"""The twelve tasks of the Shears paper: their rows, labels, right answers and choices.

Rows of LLM-Adapters (an instruction and its answer) pass as they are; rows of the hub's own data
sets are converted to that form, in the same words.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shears.config.evaluate import ANSWER_FORMS, TEMPLATE
from shears.data.answers import finite, is_right, official_label, read_answers, response_of
from shears.data.example import Row
from shears.data.examples import Example
from shears.data.prompts import render_completion, render_prompt
from shears.data.rows import read_rows
from shears.data.rules import LETTERS, choices_of
from shears.errors import InputError

LETTER_COMPLETION = "The answer is ({})."  # as the papers' training rows of AQuA end
LABELS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "boolq": ("true", "false"),
        "piqa": ("solution1", "solution2"),
        "hellaswag": tuple(f"ending{number}" for number in range(1, 5)),
        "winogrande": ("option1", "option2"),
        **dict.fromkeys(("siqa", "arc-easy", "arc-challenge", "obqa"), tuple(f"answer{n}" for n in range(1, 6))),
    }
)
"""The labels to choose from, for each task whose answer is a label."""
FOLDERS = {
    "siqa": "social_i_qa",
    "arc-easy": "ARC-Easy",
    "arc-challenge": "ARC-Challenge",
    "obqa": "openbookqa",
    "aqua": "AQuA",
    "svamp": "SVAMP",
}
"""Folders of LLM-Adapters whose names differ from their task's."""
Converter = Callable[[Mapping[str, Any]], tuple[str, object]]


def right_answers(task: str, examples: Sequence[Example]) -> list[float | str]:
    """Return the right answers; InputError for the first row without one of the task's form."""
    answers = []
    for number, example in enumerate(examples, start=1):
        text = (example.answer or "").strip()
        answer = _right_answer(task, text)
        if answer is None:
            forms = {"number": "a number", "letter": "a letter A to E"}
            form = forms.get(ANSWER_FORMS[task]) or " or ".join(LABELS[task])
            raise InputError(f"every row of {task} must have {form} as its answer, row {number} has {text!r}")
        answers.append(answer)
    return answers


def _right_answer(task: str, text: str) -> float | str | None:
    form = ANSWER_FORMS[task]
    if form == "letter":
        return text if text in LETTERS else None
    if form == "label":
        return official_label(text, LABELS[task])
    try:
        return finite(text.replace(",", ""))
    except ValueError:
        return None


def with_choices(task: str, examples: Sequence[Example], template: str) -> list[Example]:
    """Return the examples with their choices, written as completions of the template.

    InputError for a task whose answer is a number.
    """
    form = ANSWER_FORMS[task]
    if form == "number":
        raise InputError(f"protocol choices needs a task with choices, and {task} asks for a number; use generate")
    if form == "label":
        return list(examples)  # their instructions end with the choices
    choices = {letter: render_completion(template, LETTER_COMPLETION.format(letter)) for letter in LETTERS}
    return [
        replace(example, choices=tuple(choices.values()), answer=choices[str(answer)])
        for example, answer in zip(examples, right_answers(task, examples), strict=True)
    ]


def paper_row(task: str, row: Mapping[str, Any]) -> Row:
    """Return a row as `instruction` and `answer`; InputError for columns of neither form."""
    if "instruction" in row and "answer" in row:
        return dict(row)
    columns, convert = HUB_FORMS[task]
    if not all(column in row for column in columns):
        raise InputError(
            f"a row of {task} must have the columns instruction and answer, or {', '.join(columns)}; "
            f"got {', '.join(map(str, row)) or 'none'}"
        )
    try:
        instruction, answer = convert(row)
        _, listed, choices = instruction.rpartition("Answer format: ")
        if listed and answer not in choices.split("/"):
            raise ValueError(f"no choice is {answer}")
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # e.g. of test splits without labels
        raise InputError(f"a row of {task} must have its choices and an answer among them, got {error!r}") from None
    return {"instruction": instruction, "input": "", "answer": str(answer)}


def _listed(name: str, choices: Sequence[str], separator: str = "\n\n") -> str:
    """Return choices and answer format: `Answer1: a Answer2: b`, `answer1/answer2`."""
    shown = " ".join(f"{name}{number}: {choice}" for number, choice in enumerate(choices, start=1))
    labels = "/".join(f"{name.lower()}{number}" for number in range(1, len(choices) + 1))
    return f"{shown}{separator}Answer format: {labels}"


def _boolq(row: Mapping[str, Any]) -> tuple[str, object]:
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return f"{question}\n\nAnswer format: true/false", str(row["answer"]).lower()


def _piqa(row: Mapping[str, Any]) -> tuple[str, object]:
    solutions = f"Solution1: {row['sol1']}\n\nSolution2: {row['sol2']}\n\nAnswer format: solution1/solution2"
    question = f"Please choose the correct solution to the question: {row['goal']}"
    return f"{question}\n\n{solutions}", f"solution{int(row['label']) + 1}"


def _siqa(row: Mapping[str, Any]) -> tuple[str, object]:
    choices = [row[f"answer{letter}"] for letter in "ABC"]
    question = f"Please choose the correct answer to the question: {row['context']} {row['question']}"
    return f"{question}\n\n{_listed('Answer', choices)}", f"answer{int(row['label'])}"


def _hellaswag(row: Mapping[str, Any]) -> tuple[str, object]:
    start = f"{row['activity_label']}: {row['ctx']}"
    question = f"Please choose the correct ending to complete the given sentence: {start}"
    return f"{question}\n\n{_listed('Ending', row['endings'])}", f"ending{int(row['label']) + 1}"


def _winogrande(row: Mapping[str, Any]) -> tuple[str, object]:
    question = "Please choose the correct answer to fill in the blank to complete the given sentence: "
    options = _listed("Option", [row["option1"], row["option2"]], separator=" ")
    return f"{question}{row['sentence']}\n\n{options}", f"option{row['answer']}"


def _science(column: str, row: Mapping[str, Any]) -> tuple[str, object]:
    """Return a row of ARC or OpenBookQA: choices {text, label}, labels letters or numbers."""
    choices: Mapping[str, Sequence[str]] = row["choices"]
    number = list(choices["label"]).index(row["answerKey"]) + 1
    instruction = f"Please choose the correct answer to the question: {row[column]}"
    return f"{instruction}\n\n{_listed('Answer', choices['text'])}", f"answer{number}"


def _aqua(row: Mapping[str, Any]) -> tuple[str, object]:
    options = " ".join(f"({option.split(')', 1)[0]}) {option.split(')', 1)[1].strip()}" for option in row["options"])
    return f"{row['question']} Answer Choices: {options}", row["correct"]


def _gsm8k(row: Mapping[str, Any]) -> tuple[str, object]:
    return row["question"], str(row["answer"]).rsplit("####", 1)[-1].strip().replace(",", "")


def _svamp(row: Mapping[str, Any]) -> tuple[str, object]:
    body = str(row["Body"]).strip()
    return f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {str(row['Question']).strip()}", row["Answer"]


HUB_FORMS: Mapping[str, tuple[tuple[str, ...], Converter]] = MappingProxyType(
    {
        "gsm8k": (("question", "answer"), _gsm8k),
        "aqua": (("question", "options", "correct"), _aqua),
        "mawps": (("original_text", "ans"), lambda row: (row["original_text"], row["ans"])),
        "svamp": (("Body", "Question", "Answer"), _svamp),
        "boolq": (("question", "answer"), _boolq),
        "piqa": (("goal", "sol1", "sol2", "label"), _piqa),
        "siqa": (("context", "question", "answerA", "answerB", "answerC", "label"), _siqa),
        "hellaswag": (("activity_label", "ctx", "endings", "label"), _hellaswag),
        "winogrande": (("sentence", "option1", "option2", "answer"), _winogrande),
        "arc-easy": (("question", "choices", "answerKey"), partial(_science, "question")),
        "arc-challenge": (("question", "choices", "answerKey"), partial(_science, "question")),
        "obqa": (("question_stem", "choices", "answerKey"), partial(_science, "question_stem")),
    }
)


def rows_for_lm_eval(
    task: str, shears_data: str | None = None, shears_template: str = TEMPLATE, **_: object
) -> dict[str, Any]:
    """Return the test split of a task, a `datasets.Dataset`, for the YAML tasks in lm_eval/.

    Columns are prompt, choices, gold (the right choice's index) and answer. lm-eval passes its
    metadata, such as `--metadata '{"shears_data": "FOLDER"}'` for the folder of `boolq/test.json`;
    without it, the folder is SHEARS_DATA of the environment, else the current one. Other metadata
    are ignored. InputError if the file is missing.
    """
    import datasets

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


def score_for_lm_eval(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return whether a response is right by the official rule (`acc`) and the strict one."""
    task = document["task"]
    form = ANSWER_FORMS[task]
    answer = document["answer"]
    official, strict = read_answers(form, response_of(results[0]), LABELS.get(task, ()))
    right = float(answer.replace(",", "")) if form == "number" else answer
    return {"acc": float(is_right(official, right)), "acc_strict": float(is_right(strict, right))}
