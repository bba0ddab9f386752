"""The tasks: what is measured of a model on examples or on a text, with sample count, interval and every record.

A new task on examples is one function and a line in `ACCURACY_TASKS`.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.config.paper import ANSWER_FORMS
from shears.data.calibration import text_tokens
from shears.data.examples import Example, completion_of, load_examples, prompts_of
from shears.data.paper_rows import paper_row
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.errors import InputError
from shears.evaluation.generation.generate import Decoder
from shears.evaluation.journal import Journal
from shears.evaluation.records import Evaluation, Record, accuracy_of, record
from shears.evaluation.scoring.perplexity import perplexity
from shears.evaluation.scoring.score import choose
from shears.evaluation.scoring.scorers import check_choices
from shears.evaluation.tasks.answers import evaluate_equation, extract_number, numbers_equal, right_number
from shears.evaluation.tasks.paper_tasks import generated_records, with_choices

logger = logging.getLogger(__name__)
__all__ = ["ACCURACY_TASKS", "GENERATED", "Evaluation", "Record", "evaluate_examples", "evaluate_task",
           "load_task_examples"]  # fmt: skip


def evaluate_task(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the evaluation of a model on the task and data of a configuration; InputError where they do not fit."""
    if config.task == "perplexity":
        return _perplexity(model, tokenizer, config)
    return evaluate_examples(model, tokenizer, load_task_examples(tokenizer, config), config)


def load_task_examples(tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> list[Example]:
    """Return the examples of a configuration's data; rows of a paper's task may have the form of the hub's own set."""
    template = config.template or DEFAULT_TEMPLATE
    if config.task not in ANSWER_FORMS:
        return load_examples(config.data, template, tokenizer, config.limit)
    return load_examples(config.data, template, tokenizer, config.limit, partial(paper_row, config.task))


def evaluate_examples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
) -> Evaluation:
    """Return the accuracy on examples already loaded (all of them; `limit` and `data` are not looked at).

    `journal` keeps generated texts, so that the evaluation can go on after a kill.
    """
    if config.task not in ACCURACY_TASKS:
        raise InputError(f"task must be one of {', '.join(ACCURACY_TASKS)}, got {config.task!r}")
    evaluation = accuracy_of(config.task, ACCURACY_TASKS[config.task](model, tokenizer, examples, config, journal))
    logger.info("%s: accuracy %.4f (%.4f to %.4f) on %d examples",
                config.task, evaluation.value, *evaluation.ci95, evaluation.n)  # fmt: skip
    return evaluation


def _choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
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
                **record(index, example, chosen.strip(), str(example.answer).strip()),
                "correct": chosen == example.answer,
                "correct_per_token": per_token == example.answer,
                "log_likelihoods": [_shown(value) for value in choice.log_likelihoods],
            }
        )
    return records


def _shown(log_likelihood: float) -> float | None:
    """Return a log-likelihood as a record holds it, None for that of the impossible."""
    return round(log_likelihood, 4) if math.isfinite(log_likelihood) else None


def _paper(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
) -> list[Record]:
    """A task of the paper, by the protocol asked for."""
    if config.protocol == "choices":
        template = config.template or DEFAULT_TEMPLATE
        return _choices(model, tokenizer, with_choices(config.task, examples, template), config)
    return generated_records(model, tokenizer, examples, config, journal)


@dataclass(frozen=True)
class Generated:
    """A task: generate, read a number from the text (of its first line, if `one_line`), compare it with the answer."""

    read: Callable[[str], float | None]
    one_line: bool

    def answers(self, examples: Sequence[Example]) -> list[float]:
        """Return the right answers; InputError where an example has none."""
        return [_right_number(number, example, self.read) for number, example in enumerate(examples, start=1)]

    def __call__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        config: EvaluateConfig,
        journal: Journal | None = None,
    ) -> list[Record]:
        """Return what each example gave."""
        answers = self.answers(examples)
        decoder = Decoder(model, tokenizer, config.max_new_tokens, self.one_line, config.num_beams, journal)
        prompts = prompts_of(examples, tokenizer)
        decoder.warn(prompts)
        texts = decoder.answers(prompts, config.batch_size)
        return [
            {
                **record(index, example, self.read(text), answer),
                "correct": numbers_equal(self.read(text), answer),
                "output": text,
            }
            for index, (example, text, answer) in enumerate(zip(examples, texts, answers, strict=True))
        ]


def _right_number(number: int, example: Example, read: Callable[[str], float | None]) -> float:
    """The answer of a row is a number; without one, what the same reader finds in its completion."""
    answer = read(completion_of(example)) if example.answer is None else right_number(example.answer)
    if answer is None:
        raise InputError(
            f"every row must have a number as its answer, in decimals, row {number} has {example.answer!r}"
        )
    return answer


GENERATED: Mapping[str, Generated] = MappingProxyType(
    {"number": Generated(extract_number, one_line=False), "equation": Generated(evaluate_equation, one_line=True)}
)
Task = Callable[[nn.Module, PreTrainedTokenizerBase, Sequence[Example], EvaluateConfig, Journal | None], list[Record]]
ACCURACY_TASKS: Mapping[str, Task] = MappingProxyType(
    {"choices": _choices, **GENERATED, **dict.fromkeys(ANSWER_FORMS, _paper)}
)


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
