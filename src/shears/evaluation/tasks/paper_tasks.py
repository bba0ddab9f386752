"""The twelve tasks of the Shears paper by name: which rows, which answer, which rule reads it.

Protocols: `generate`, the paper's (a response is generated and read), and `choices` (the likeliest choice).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.config.paper import ANSWER_FORMS
from shears.data.examples import Example, prompts_of
from shears.data.prompts import render_completion
from shears.errors import InputError
from shears.evaluation.generation.generate import Decoder
from shears.evaluation.journal import Journal
from shears.evaluation.records import Record, record
from shears.evaluation.tasks.answers import finite
from shears.evaluation.tasks.extraction import READERS, is_right, official_label, response_of

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


def right_answers(task: str, examples: Sequence[Example]) -> list[float | str]:
    """Return the right answer of every example in its task's form; InputError names the row that has none."""
    return [_right_answer(task, number, example) for number, example in enumerate(examples, start=1)]


def _right_answer(task: str, number: int, example: Example) -> float | str:
    form, text = ANSWER_FORMS[task], (example.answer or "").strip()
    found: float | str | None = None
    if form == "letter":
        found = text if text in LETTERS else None
    elif form == "label":
        found = official_label(text, LABELS[task])
    else:
        try:
            found = finite(text.replace(",", ""))
        except ValueError:
            found = None
    if found is None:
        kinds = {"number": "a number", "letter": "a letter A to E"}
        wanted = kinds.get(form) or " or ".join(LABELS[task])
        raise InputError(f"every row of {task} must have {wanted} as its answer, row {number} has {text!r}")
    return found


def generated_records(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
) -> list[Record]:
    """Return what each example's generated response answers, by the official rule (`correct`) and by the strict one."""
    answers, read = right_answers(config.task, examples), READERS[ANSWER_FORMS[config.task]]
    decoder = Decoder(model, tokenizer, config.max_new_tokens, num_beams=config.num_beams, journal=journal)
    prompts = prompts_of(examples, tokenizer)
    decoder.warn(prompts)
    texts = decoder.answers(prompts, config.batch_size)
    records = []
    for index, (example, text, answer) in enumerate(zip(examples, texts, answers, strict=True)):
        official, strict = read(response_of(text), LABELS.get(config.task, ()))
        records.append(
            {
                **record(index, example, official, answer),
                "correct": is_right(official, answer),
                "prediction_strict": strict,
                "correct_strict": is_right(strict, answer),
                "output": text,
            }
        )
    return records


def with_choices(task: str, examples: Sequence[Example], template: str) -> list[Example]:
    """Return the examples with what to choose from, as it follows a prompt of the template.

    InputError for a task whose answer is a number.
    """
    form = ANSWER_FORMS[task]
    if form == "number":
        raise InputError(f"protocol choices needs a task with choices, and {task} asks for a number; use generate")
    if form == "label":
        return list(examples)  # they stand at the end of the instruction
    answers = right_answers(task, examples)
    choices = {letter: render_completion(template, LETTER_COMPLETION.format(letter)) for letter in LETTERS}
    return [
        replace(example, choices=tuple(choices.values()), answer=choices[str(answer)])
        for example, answer in zip(examples, answers, strict=True)
    ]
