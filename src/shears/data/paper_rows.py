"""Rows of the paper's twelve tasks in the form of LLM-Adapters' files: an instruction and its answer.

Rows of that form pass as they are; rows of the hub's own data sets are converted, in the same words.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from shears.data.rows import Row
from shears.errors import InputError

Converter = Callable[[Mapping[str, Any]], tuple[str, object]]


def paper_row(task: str, row: Mapping[str, Any]) -> Row:
    """Return a row of a task as `instruction` and `answer`; InputError for columns of neither form."""
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
    """Return numbered choices and the format of the answer: `Answer1: a Answer2: b`, `answer1/answer2`."""
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
    """Return a row of ARC or OpenBookQA, whose choices are {text, label} and whose labels are letters or numbers."""
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


def _mawps(row: Mapping[str, Any]) -> tuple[str, object]:
    return row["original_text"], row["ans"]


HUB_FORMS: Mapping[str, tuple[tuple[str, ...], Converter]] = MappingProxyType(
    {
        "gsm8k": (("question", "answer"), _gsm8k),
        "aqua": (("question", "options", "correct"), _aqua),
        "mawps": (("original_text", "ans"), _mawps),
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
