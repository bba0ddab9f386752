"""The tasks by name, and the evaluation of a loaded model on one of them.

A new way to read a number is a function and an entry in answers.py; any other task on examples is a
function here and an entry of `ACCURACY_TASKS`. config/evaluate.py lists the names.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.config.evaluate import ANSWER_FORMS
from shears.config.fields import CHAT
from shears.data import answers as reading
from shears.data.calibration import check_text, text_tokens
from shears.data.example import Row
from shears.data.examples import Example, check_rows, completion_of, load_examples, prompts_of
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.data.rules import AnswerRule, RuleForm, rule_of_text
from shears.errors import InputError
from shears.evaluation.contamination import Source, ids_of, mark_seen
from shears.evaluation.continuous import ContinuousDecoder
from shears.evaluation.generate import Decoder
from shears.evaluation.records import (
    FIELDS,
    Evaluation,
    Record,
    TextJournal,
    WrittenText,
    accuracy_of,
    record,
    written,
)
from shears.evaluation.scoring.perplexity import perplexity
from shears.evaluation.scoring.score import likeliest_choices, warn_beyond
from shears.evaluation.scoring.scorers import check_choices
from shears.evaluation.shots import BLANK_LINE, first_part, with_shots
from shears.evaluation.tasks.harness import QUESTION_IDS, check_installed, run_harness
from shears.evaluation.tasks.paper_tasks import LABELS, paper_row, right_answers, with_choices
from shears.runtime.generation.backend import Backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskInputs:
    """What a task measures: a loaded model on examples.

    `journal` keeps generated texts; `backend` generates them in place of transformers.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    config: EvaluateConfig
    journal: TextJournal | None = None
    backend: Backend | None = None

    def generated(self, until: str = "") -> list[WrittenText]:
        """Return the generated text of every example, up to a mark; with shots, up to a blank line."""
        if until or self.config.shots is None:
            return self._generated(until)
        parts = [(text, first_part(text.text)) for text in self._generated(BLANK_LINE)]
        return [text if part is None else WrittenText(part, False) for text, part in parts]

    def _generated(self, until: str) -> list[WrittenText]:
        limit = self.config.longest_answer
        prompts = prompts_of(self.examples, self.tokenizer)
        warn_beyond(self.model, [len(ids) + limit - 1 for ids in prompts])
        if self.backend is not None:
            settings = getattr(self.model, "generation_config", None)
            native = ContinuousDecoder(self.backend, self.tokenizer, settings, limit, until, self.journal)
            return native.answers(prompts)
        decoder = Decoder(self.model, self.tokenizer, limit, until, self.config.beams, self.journal)
        return decoder.answers(prompts, self.config.batch_size)


def evaluate_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluateConfig,
    journal: TextJournal | None = None,
    training: Sequence[Source] = (),
    backend: Backend | None = None,
) -> Evaluation:
    """Return the evaluation of a model on a task and its data; InputError if they do not match.

    Questions that the `training` data hold are marked. `backend` generates answers.
    """
    if config.task == "perplexity":
        tokens = text_tokens(config.data, tokenizer, config.columns, config.template or DEFAULT_TEMPLATE)
        return perplexity(model, tokens, config.sequence_length, config.limit)
    if config.task == "harness":
        evaluation = run_harness(model, tokenizer, config)
        return mark_seen(evaluation, [record[QUESTION_IDS] for record in evaluation.records], training)
    template = config.template or DEFAULT_TEMPLATE
    convert = _converted(config)
    examples = load_examples(config.data, template, tokenizer, config.limit, convert, config.columns)
    examples = with_shots(examples, config, tokenizer, convert)
    evaluation = evaluate_examples(model, tokenizer, examples, config, journal, backend)
    return mark_seen(evaluation, ids_of(examples), training)


def _converted(config: EvaluateConfig) -> Callable[[Row], Row]:
    """Return what makes a row the task's; a paper's task also has the hub's columns."""
    return partial(paper_row, config.task) if config.task in ANSWER_FORMS else dict


def check_data(config: EvaluateConfig) -> None:
    """Raise InputError, before a model is loaded, for data whose rows the task does not know."""
    if config.task == "perplexity":
        check_text(config.data, config.columns)
    elif config.task == "harness":
        check_installed()
    else:
        check_rows(config.data, config.columns, config.limit, _converted(config))


def evaluate_examples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: TextJournal | None = None,
    backend: Backend | None = None,
) -> Evaluation:
    """Return the accuracy on loaded examples; `limit` and `data` are ignored."""
    if config.task not in ACCURACY_TASKS:
        raise InputError(f"task must be one of {', '.join(ACCURACY_TASKS)}, got {config.task!r}")
    records = ACCURACY_TASKS[config.task](TaskInputs(model, tokenizer, examples, config, journal, backend))
    evaluation = accuracy_of(config.task, records)
    message = "%s: accuracy %.4f (%.4f to %.4f) on %d examples"
    logger.info(message, config.task, evaluation.value, *evaluation.ci95, evaluation.n)
    return evaluation


def _choices(inputs: TaskInputs) -> list[Record]:
    """Answer each example with its choice of the highest log-likelihood."""
    examples = inputs.examples
    check_choices(examples)
    chosen = likeliest_choices(inputs.model, inputs.tokenizer, examples, inputs.config.batch_size)
    records = []
    for index, (example, choice) in enumerate(zip(examples, chosen, strict=True)):
        likeliest = example.choices[choice.likeliest]
        shown = [round(value, 4) if math.isfinite(value) else None for value in choice.log_likelihoods]
        records.append(
            {
                **record(index, example, likeliest.strip(), str(example.answer).strip()),
                "correct": likeliest == example.answer,
                "correct_per_token": example.choices[choice.likeliest_per_token] == example.answer,
                "log_likelihoods": shown,  # None for an impossible choice: JSON has no infinity
            }
        )
    return records


def _paper(inputs: TaskInputs) -> list[Record]:
    """Answer the examples of a paper's task by the configured protocol."""
    config = inputs.config
    if config.protocol == "choices":
        examples = with_choices(config.task, inputs.examples, config.template or DEFAULT_TEMPLATE)
        return _choices(replace(inputs, examples=examples))
    answers = right_answers(config.task, inputs.examples)
    form = ANSWER_FORMS[config.task]
    records = []
    for index, (example, text, answer) in enumerate(zip(inputs.examples, inputs.generated(), answers, strict=True)):
        official, strict = reading.read_answers(form, reading.response_of(text.text), LABELS.get(config.task, ()))
        if form == "letter" and config.template == CHAT:  # the official rule takes the first capital of a reasoning
            official = strict
        records.append(
            {
                **record(index, example, official, answer),
                "correct": reading.is_right(official, answer),
                "prediction_strict": strict,
                "correct_strict": reading.is_right(strict, answer),
                **written(text),
            }
        )
    return records


class WrittenTask(Protocol):
    """A task that is answered with a text, which holds a right answer or not."""

    @property
    def until(self) -> str:
        """The mark that ends an answer beside its own end: a line break, or none."""

    def answers(self, examples: Sequence[Example]) -> Sequence[Any]:
        """Return what a right answer is, for each example; InputError for an example without."""

    def is_right(self, text: str, answer: Any) -> bool:
        """Return whether a text gives the right answer."""

    def __call__(self, inputs: TaskInputs) -> list[Record]:
        """Return a record of each example."""


@dataclass(frozen=True)
class Generated:
    """A task that compares the number that `read` finds in a generated text with the answer."""

    read: Callable[[str], float | None]
    until: str
    """A line break if the answer is the first line of the text."""

    def is_right(self, text: str, answer: float) -> bool:
        """Return whether the number in a text is the answer."""
        return reading.numbers_equal(self.read(text), answer)

    def answers(self, examples: Sequence[Example]) -> list[float]:
        """Return the right answers, from completions where needed; InputError without any."""
        answers = []
        for number, example in enumerate(examples, start=1):
            given = example.answer
            answer = self.read(completion_of(example)) if given is None else reading.right_number(given)
            if answer is None:
                raise InputError(f"every row must have a number as its answer, in decimals, row {number} has {given!r}")
            answers.append(answer)
        return answers

    def __call__(self, inputs: TaskInputs) -> list[Record]:
        """Return a record of each example."""
        answers = self.answers(inputs.examples)
        return [
            {
                **record(index, example, self.read(text.text), answer),
                "correct": self.is_right(text.text, answer),
                **written(text),
            }
            for index, (example, text, answer) in enumerate(
                zip(inputs.examples, inputs.generated(self.until), answers, strict=True)
            )
        ]


@dataclass(frozen=True)
class Compared:
    """A task that compares a generated text with the row's answer by the rule of a form."""

    form: RuleForm
    until: str = ""

    def is_right(self, text: str, answer: AnswerRule) -> bool:
        """Return whether a text gives the right answer."""
        return answer.is_right(text)

    def answers(self, examples: Sequence[Example]) -> list[AnswerRule]:
        """Return the rule of every example; InputError for one without an answer of the form."""
        rules = []
        for number, example in enumerate(examples, start=1):
            try:
                rules.append(rule_of_text(example.reference, self.form))
            except InputError as error:
                raise InputError(f"row {number}: {error}") from None
        return rules

    def __call__(self, inputs: TaskInputs) -> list[Record]:
        """Return a record of each example."""
        rules = self.answers(inputs.examples)
        rows = zip(inputs.examples, inputs.generated(), rules, strict=True)
        records = []
        for index, (example, text, rule) in enumerate(rows):
            fields = {FIELDS: rule.fields(text.text)._asdict()} if self.form == "json" else {}
            read = record(index, example, rule.read(text.text), rule.answer)
            records.append({**read, "correct": rule.is_right(text.text), **fields, **written(text)})
        return records


GENERATED: Mapping[str, WrittenTask] = MappingProxyType(
    {
        **{name: Generated(read, "\n" if is_line else "") for name, (read, is_line) in reading.NUMBER_READERS.items()},
        "json": Compared("json"),
        "exact": Compared("exact"),
    }
)
ACCURACY_TASKS: Mapping[str, Callable[[TaskInputs], list[Record]]] = MappingProxyType(
    {"choices": _choices, **GENERATED, **dict.fromkeys(ANSWER_FORMS, _paper)}
)
"""The tasks on examples; each returns a record of every example."""
