"""The tasks of `evaluate`, and the evaluation of a loaded model on one of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.config.evaluate_options import ANSWER_FORMS
from shears.config.fields import CHAT
from shears.data.answer_reading import finite, is_right, official_label, read_answers, response_of
from shears.data.calibration import check_text, text_tokens
from shears.data.examples import Example, check_rows, load_examples, prompts_of, row_named
from shears.data.rows import Row
from shears.data.rules import reference_of, rule_of_text
from shears.data.templates import DEFAULT_TEMPLATE
from shears.errors import option
from shears.evaluation.decode import Decoder
from shears.evaluation.evaluated import Evaluation, Record, TextJournal, WrittenText, accuracy_of, record
from shears.evaluation.harness import check_installed, run_harness
from shears.evaluation.likelihood import perplexity, scored_choices, warn_beyond
from shears.records.figures import CUT
from shears.runtime.backend import Backend


@dataclass(frozen=True)
class Subject:
    """A loaded model; `backend` generates answers instead of transformers, `journal` keeps them."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    backend: Backend | None = None
    journal: TextJournal | None = None

    def answers(self, examples: Sequence[Example], config: EvaluateConfig) -> list[WrittenText]:
        limit = config.longest_answer
        until = "\n" if config.task == "equation" else ""  # an equation is one line
        prompts = prompts_of(examples, self.tokenizer)
        warn_beyond(self.model, [len(ids) + limit - 1 for ids in prompts])
        decoder = Decoder(self.model, self.tokenizer, limit, until, config.beams, self.journal, self.backend)
        return decoder.answers(prompts, config.batch_size)


def check_data(config: EvaluateConfig) -> None:
    """Raise InputError, before a model is loaded, for data whose rows the task does not know."""
    if config.task == "perplexity":
        check_text(config.data, config.columns)
    elif config.task == "harness":
        check_installed()
    else:
        check_rows(config.data, config.columns, config.limit, _converter(config.task))


def _converter(task: str) -> Callable[[Row], Row]:
    return partial(paper_row, task) if task in ANSWER_FORMS else dict


def evaluate_task(subject: Subject, config: EvaluateConfig) -> Evaluation:
    """Return the evaluation of a model on a task and its data; InputError if they do not match."""
    template = config.template or DEFAULT_TEMPLATE
    if config.task == "perplexity":
        tokens = text_tokens(config.data, subject.tokenizer, config.columns, template)
        return perplexity(subject.model, tokens, config.sequence_length, config.limit)
    if config.task == "harness":
        return run_harness(subject.model, subject.tokenizer, config)
    convert = _converter(config.task)
    examples = load_examples(config.data, template, subject.tokenizer, config.limit, convert, config.columns)
    return evaluate_examples(subject, examples, config)


def evaluate_examples(subject: Subject, examples: Sequence[Example], config: EvaluateConfig) -> Evaluation:
    """Return the accuracy on loaded examples; `limit` and `data` are ignored."""
    if config.task == "choices":
        records = _by_likelihood(subject, examples, config)
    elif config.task in ANSWER_FORMS:
        records = _paper(subject, examples, config)
    else:
        records = _by_rule(subject, examples, config)
    return accuracy_of(config.task, records)


def _by_likelihood(subject: Subject, examples: Sequence[Example], config: EvaluateConfig) -> list[Record]:
    scored = scored_choices(subject.model, subject.tokenizer, examples, config.batch_size)
    records = []
    for index, (example, (sums, means)) in enumerate(zip(examples, scored, strict=True)):
        likeliest = example.choices[sums.index(max(sums))]
        # None for an impossible choice: JSON has no infinity
        shown = [round(value, 4) if math.isfinite(value) else None for value in sums]
        records.append(
            {
                **record(index, example, likeliest.strip(), str(example.answer).strip()),
                "correct": likeliest == example.answer,
                "correct_per_token": example.choices[means.index(max(means))] == example.answer,
                "log_likelihoods": shown,
            }
        )
    return records


def _paper(subject: Subject, examples: Sequence[Example], config: EvaluateConfig) -> list[Record]:
    form = ANSWER_FORMS[config.task]
    answers = paper_answers(config.task, examples)
    texts = subject.answers(examples, config)
    records = []
    for index, (example, text, answer) in enumerate(zip(examples, texts, answers, strict=True)):
        official, strict = read_answers(form, response_of(text.text), LABELS[config.task])
        if form == "letter" and config.template == CHAT:  # the official one takes the first capital
            official = strict
        row = {**record(index, example, official, answer), "correct": is_right(official, answer)}
        if form != "number":  # the rules read numbers alike
            row |= {"prediction_strict": strict, "correct_strict": is_right(strict, answer)}
        records.append({**row, "output": text.text, CUT: text.is_cut})
    return records


def _by_rule(subject: Subject, examples: Sequence[Example], config: EvaluateConfig) -> list[Record]:
    form: Any = config.task
    rules = []
    for number, example in enumerate(examples, start=1):
        with row_named(number, "the data"):
            rules.append(rule_of_text(reference_of(example.row), form))
    records = []
    for index, (example, text, rule) in enumerate(zip(examples, subject.answers(examples, config), rules, strict=True)):
        row = {**record(index, example, rule.read(text.text), rule.answer), "correct": rule.is_right(text.text)}
        records.append({**row, "output": text.text, CUT: text.is_cut})
    return records


PAPER_TASKS: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("paper_tasks.yaml").read_text(encoding="utf-8")
)
LABELS: Mapping[str, Sequence[str]] = {name: tuple(task.get("labels", ())) for name, task in PAPER_TASKS.items()}
"""The labels or letters to choose from; none for a task whose answer is a number."""
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def paper_row(task: str, row: Mapping[str, Any]) -> Row:
    """Return a row as `instruction` and `answer`; ValueError if that cannot be done."""
    if "instruction" in row and "answer" in row:
        return dict(row)
    columns = PAPER_TASKS[task]["columns"]
    if not all(column in row for column in columns):
        names = f"instruction and answer, or {', '.join(columns)}"
        raise ValueError(f"a row of {task} needs the columns {names}; got {', '.join(map(str, row)) or 'none'}")
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
            is_number = ANSWER_FORMS[task] == "number"
            answer = finite(text.replace(",", "")) if is_number else official_label(text, LABELS[task])
            if answer is None:
                wanted = " or ".join(LABELS[task]) or "a number"
                raise ValueError(f"the answer to {task} must be {wanted}, got {text!r}")
        answers.append(answer)
    return answers
