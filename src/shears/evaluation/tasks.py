"""The tasks: what is measured of a model on examples or on a text, with sample count, interval and every record.

A new task on examples is one function and a line in `ACCURACY_TASKS`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.data.calibration import text_tokens
from shears.data.examples import Example, completion_of, load_examples, prompt_of
from shears.errors import InputError
from shears.evaluation.answers import evaluate_equation, extract_number, numbers_equal
from shears.evaluation.generate import generate_answers
from shears.evaluation.perplexity import perplexity
from shears.evaluation.score import choose
from shears.evaluation.scorers import check_choices
from shears.evaluation.statistics import wilson_interval
from shears.prompts import DEFAULT_TEMPLATE
from shears.recipe import EvaluateConfig

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A figure with the number of samples behind it, its 95 % interval, and what each sample gave."""

    task: str
    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    records: list[Record] = field(repr=False)
    details: dict[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON data."""
        return {**asdict(self), "ci95": list(self.ci95)}


def evaluate_task(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the evaluation of a model on the task and data of a configuration; InputError where they do not fit."""
    if config.task == "perplexity":
        return _perplexity(model, tokenizer, config)
    template = config.template or DEFAULT_TEMPLATE
    return evaluate_examples(model, tokenizer, load_examples(config.data, template, tokenizer, config.limit), config)


def evaluate_examples(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvaluateConfig
) -> Evaluation:
    """Return the accuracy on examples already loaded (all of them; `limit` and `data` are not looked at)."""
    if config.task not in ACCURACY_TASKS:
        raise InputError(f"task must be one of {', '.join(ACCURACY_TASKS)}, got {config.task!r}")
    records = ACCURACY_TASKS[config.task](model, tokenizer, examples, config)
    hits, n = sum(record["correct"] for record in records), len(records)
    details = {}
    if n and "correct_per_token" in records[0]:
        details["accuracy_per_token"] = sum(record["correct_per_token"] for record in records) / n
    low, high = wilson_interval(hits, n)
    logger.info("%s: accuracy %.4f (%.4f to %.4f) on %d examples", config.task, hits / n, low, high, n)
    return Evaluation(config.task, "accuracy", hits / n, n, (low, high), records, details)


def _choices(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvaluateConfig
) -> list[Record]:
    """The choice of the highest log-likelihood is the answer."""
    check_choices(examples)
    records = []
    for index, (example, choice) in enumerate(
        zip(examples, choose(model, tokenizer, examples, config.batch_size), strict=True)
    ):
        chosen, per_token = example.choices[choice.likeliest], example.choices[choice.likeliest_per_token]
        records.append(
            {
                **_record(index, example, chosen.strip(), str(example.answer).strip()),
                "correct": chosen == example.answer,
                "correct_per_token": per_token == example.answer,
                "log_likelihoods": [round(value, 4) for value in choice.log_likelihoods],
            }
        )
    return records


def _record(index: int, example: Example, prediction: object, answer: object) -> Record:
    return {"index": index, "prompt": prompt_of(example), "prediction": prediction, "answer": answer}


@dataclass(frozen=True)
class Generated:
    """A task: generate, read a number from the text (of its first line, if `one_line`), compare it with the answer."""

    read: Callable[[str], float | None]
    one_line: bool

    def answers(self, examples: Sequence[Example]) -> list[float]:
        """Return the right answers; InputError where an example has none."""
        return [_right_number(number, example, self.read) for number, example in enumerate(examples, start=1)]

    def __call__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: EvaluateConfig
    ) -> list[Record]:
        """Return what each example gave."""
        answers = self.answers(examples)
        prompts = [prompt_of(example) for example in examples]
        texts = generate_answers(model, tokenizer, prompts, config.max_new_tokens, config.batch_size, self.one_line)
        return [
            {
                **_record(index, example, self.read(text), answer),
                "correct": numbers_equal(self.read(text), answer),
                "output": text,
            }
            for index, (example, text, answer) in enumerate(zip(examples, texts, answers, strict=True))
        ]


def _right_number(number: int, example: Example, read: Callable[[str], float | None]) -> float:
    """The answer of a row is a number; without one, what the same reader finds in its completion."""
    answer = read(completion_of(example)) if example.answer is None else extract_number(example.answer)
    if answer is None:
        raise InputError(f"every row must have a number as its answer, row {number} has {example.answer!r}")
    return answer


GENERATED: Mapping[str, Generated] = MappingProxyType(
    {"number": Generated(extract_number, one_line=False), "equation": Generated(evaluate_equation, one_line=True)}
)
ACCURACY_TASKS: Mapping[
    str, Callable[[nn.Module, PreTrainedTokenizerBase, Sequence[Example], EvaluateConfig], list[Record]]
] = MappingProxyType({"choices": _choices, **GENERATED})


def _perplexity(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    tokens = text_tokens(config.data, tokenizer)
    result = perplexity(model, tokens, config.sequence_length, config.limit)
    each = result.n_tokens // result.n_windows
    records = [{"window": index, "nll": nll, "tokens": each} for index, nll in enumerate(result.window_losses)]
    logger.info(
        "perplexity %.4g (%.4g to %.4g) on %d windows of %d tokens",
        result.value, *result.ci95, result.n_windows, each + 1,
    )  # fmt: skip
    details = {"windows": float(result.n_windows)}
    return Evaluation("perplexity", "perplexity", result.value, result.n_tokens, result.ci95, records, details)
