"""The twelve tasks of the Shears paper: their labels, right answers and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from shears.config.evaluate import ANSWER_FORMS
from shears.data.examples import Example
from shears.data.prompts import render_completion
from shears.errors import InputError
from shears.evaluation.tasks.answers import finite
from shears.evaluation.tasks.extraction import official_label

LETTERS = tuple("ABCDE")
LETTER_COMPLETION = "The answer is ({})."  # as the papers' training rows of AQuA end
_ANSWERS = tuple(f"answer{number}" for number in range(1, 6))
LABELS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "boolq": ("true", "false"),
        "piqa": ("solution1", "solution2"),
        "siqa": _ANSWERS,
        "hellaswag": tuple(f"ending{number}" for number in range(1, 5)),
        "winogrande": ("option1", "option2"),
        "arc-easy": _ANSWERS,
        "arc-challenge": _ANSWERS,
        "obqa": _ANSWERS,
    }
)
"""The labels to choose from, for each task whose answer is a label."""


def right_answers(task: str, examples: Sequence[Example]) -> list[float | str]:
    """Return the right answer of every example; InputError names the first row without one in its task's form."""
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
