"""The tasks by name, and the evaluation of a loaded model on one of them.

A new way to read a number from a generated text is a function and a line in answers.py; any other task on examples is
a function here and a line in `ACCURACY_TASKS`. Its name is listed in the configuration.
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
from shears.data.examples import Example, completion_of, load_examples
from shears.data.paper_rows import paper_row
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.errors import InputError
from shears.evaluation.generation.generate import generate_texts
from shears.evaluation.journal import Journal
from shears.evaluation.records import Evaluation, Record, accuracy_of, record
from shears.evaluation.scoring.perplexity import perplexity
from shears.evaluation.scoring.score import choose
from shears.evaluation.scoring.scorers import check_choices
from shears.evaluation.tasks.answers import NUMBER_READERS, numbers_equal, right_number
from shears.evaluation.tasks.paper_tasks import generated_records, with_choices

logger = logging.getLogger(__name__)


def evaluate_task(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the evaluation of a model on a configuration's task and data; InputError if they do not match."""
    if config.task == "perplexity":
        return _perplexity(model, tokenizer, config)
    return evaluate_examples(model, tokenizer, load_task_examples(tokenizer, config), config)


def load_task_examples(tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> list[Example]:
    """Return the examples of a configuration's data; rows of a paper's task may have the columns of the hub's set."""
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
    """Return the accuracy on loaded examples; `limit` and `data` of the configuration are ignored.

    `journal` keeps generated texts, so that an evaluation that was killed can resume.
    """
    if config.task not in ACCURACY_TASKS:
        raise InputError(f"task must be one of {', '.join(ACCURACY_TASKS)}, got {config.task!r}")
    evaluation = accuracy_of(config.task, ACCURACY_TASKS[config.task](model, tokenizer, examples, config, journal))
    logger.info(
        "%s: accuracy %.4f (%.4f to %.4f) on %d examples",
        config.task,
        evaluation.value,
        *evaluation.ci95,
        evaluation.n,
    )
    return evaluation


def _choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
) -> list[Record]:
    """Answer each example with its choice of the highest log-likelihood."""
    check_choices(examples)
    records = []
    chosen = choose(model, tokenizer, examples, config.batch_size)
    for index, (example, choice) in enumerate(zip(examples, chosen, strict=True)):
        likeliest = example.choices[choice.likeliest]
        records.append(
            {
                **record(index, example, likeliest.strip(), str(example.answer).strip()),
                "correct": likeliest == example.answer,
                "correct_per_token": example.choices[choice.likeliest_per_token] == example.answer,
                # JSON has no form for the infinite log-likelihood of an impossible choice
                "log_likelihoods": [
                    round(value, 4) if math.isfinite(value) else None for value in choice.log_likelihoods
                ],
            }
        )
    return records


def _paper(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: EvaluateConfig,
    journal: Journal | None = None,
) -> list[Record]:
    """Answer the examples of a paper's task by the configured protocol."""
    if config.protocol == "choices":
        template = config.template or DEFAULT_TEMPLATE
        return _choices(model, tokenizer, with_choices(config.task, examples, template), config)
    return generated_records(model, tokenizer, examples, config, journal)


@dataclass(frozen=True)
class Generated:
    """A task that generates a text for each example and compares the number that `read` finds in it with the answer."""

    read: Callable[[str], float | None]
    one_line: bool

    def answers(self, examples: Sequence[Example]) -> list[float]:
        """Return the right answers, read from the completion of an example without one; InputError if there is none."""
        answers = []
        for number, example in enumerate(examples, start=1):
            given = example.answer
            answer = self.read(completion_of(example)) if given is None else right_number(given)
            if answer is None:
                raise InputError(f"every row must have a number as its answer, in decimals, row {number} has {given!r}")
            answers.append(answer)
        return answers

    def __call__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        config: EvaluateConfig,
        journal: Journal | None = None,
    ) -> list[Record]:
        """Return a record of each example."""
        answers = self.answers(examples)
        texts = generate_texts(model, tokenizer, examples, config, self.one_line, journal)
        return [
            {
                **record(index, example, self.read(text), answer),
                "correct": numbers_equal(self.read(text), answer),
                "output": text,
            }
            for index, (example, text, answer) in enumerate(zip(examples, texts, answers, strict=True))
        ]


GENERATED: Mapping[str, Generated] = MappingProxyType(
    {name: Generated(*reader) for name, reader in NUMBER_READERS.items()}
)
Task = Callable[[nn.Module, PreTrainedTokenizerBase, Sequence[Example], EvaluateConfig, Journal | None], list[Record]]
ACCURACY_TASKS: Mapping[str, Task] = MappingProxyType(
    {"choices": _choices, **GENERATED, **dict.fromkeys(ANSWER_FORMS, _paper)}
)
"""The tasks on examples; each returns a record of every example."""


def _perplexity(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    result = perplexity(model, text_tokens(config.data, tokenizer), config.sequence_length, config.limit)
    each = result.n_tokens // result.n_windows
    records = [{"window": index, "nll": nll, "tokens": each} for index, nll in enumerate(result.window_losses)]
    logger.info(
        "perplexity %.4g (%.4g to %.4g) on %d windows of %d tokens",
        result.value,
        *result.ci95,
        result.n_windows,
        each + 1,
    )
    details = {"windows": float(result.n_windows)}
    return Evaluation("perplexity", "perplexity", result.value, result.n_tokens, result.ci95, records, details)
