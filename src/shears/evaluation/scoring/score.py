"""Log-likelihoods of choices; logits are computed only for the tokens that count.

N pairs of a prompt and a continuation, V words of the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.batches import padding
from shears.data.examples import Example, encode, prompts_of
from shears.errors import InputError
from shears.evaluation.scoring.branches import Forest, build_forest
from shears.evaluation.scoring.context import check_lengths
from shears.models.devices import device_of
from shears.models.losses import logits_at
from shears.progress import track

Run = Callable[[Callable[[], Tensor]], Tensor]
"""Calls a function that makes one forward of the model, and returns its result; it may skip a part of the forward."""


def plainly(forward: Callable[[], Tensor]) -> Tensor:
    """Make a whole forward."""
    return forward()


@dataclass(frozen=True)
class Choice:
    """The likeliest choice of an example, by the sum and by the mean over its tokens, and every choice's sum."""

    likeliest: int
    likeliest_per_token: int
    log_likelihoods: tuple[float, ...]


def choose(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[Choice]:
    """Return each example's likeliest choice; as in other evaluations, the end of sequence is not scored."""
    questions = Questions(model, tokenizer, examples)
    check_lengths(model, questions.lengths, "leave it out")
    return questions.answer(model, batch_size)


class Questions:
    """The choices of examples as rows to score, built once, so that every `answer` makes the same forwards."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
        prompts = prompts_of(examples, tokenizer)
        texts = iter(encode([choice for example in examples for choice in example.choices], tokenizer))
        choices = [[next(texts) for _ in example.choices] for example in examples]
        _check_tokens(prompts, choices)
        pairs = [(prompt, ids) for prompt, each in zip(prompts, choices, strict=True) for ids in each]
        self._choice_lengths = [[len(ids) for ids in each] for each in choices]
        self.lengths = [
            len(ids) + max(map(len, each), default=1) - 1 for ids, each in zip(prompts, choices, strict=True)
        ]
        """For each example, the tokens of the prompt and its longest choice without the last, which is no input."""
        self._pad_id = padding(tokenizer)
        self.forest = build_forest(model, pairs)

    def answer(self, model: nn.Module, batch_size: int, run: Run = plainly) -> list[Choice]:
        """Return each example's likeliest choice; `run` makes the forwards."""
        sums = iter(log_likelihoods(model, self.forest, self._pad_id, batch_size, run).tolist())
        return [
            _choice(number, [(next(sums), length) for length in lengths])
            for number, lengths in enumerate(self._choice_lengths, start=1)
        ]

    def sample(self, model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Return a small batch like those of `answer`: the inputs, and the positions whose logits are wanted."""
        trees = self.forest.trees
        longest = sorted(range(len(trees)), key=lambda row: -len(trees[row]))[-2:]
        batch = self.forest.batch(longest)
        return _on_device(model, batch.inputs(self._pad_id)), batch.wanted.to(device_of(model))


def _check_tokens(prompts: Sequence[list[int]], choices: Sequence[list[list[int]]]) -> None:
    """Raise InputError for a prompt or a choice without tokens, which has no likelihood."""
    for number, (prompt, each) in enumerate(zip(prompts, choices, strict=True), start=1):
        if not prompt:
            raise InputError(
                f"a prompt must not be empty, number {number} is; without a prompt, its choices have no likelihood"
            )
        if not all(each):
            raise InputError(
                "every choice must have tokens, for one without any is always the likeliest; "
                f"one of number {number} has none"
            )


def _choice(number: int, scored: list[tuple[float, int]]) -> Choice:
    sums = [total for total, _ in scored]
    if any(map(math.isnan, sums)):
        raise InputError(
            f"the model must give every choice a log-likelihood, got nan in row {number}; it may be damaged, "
            "or need --precision fp32"
        )
    means = [total / length for total, length in scored]
    return Choice(sums.index(max(sums)), means.index(max(means)), tuple(sums))


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, forest: Forest, pad_id: int, batch_size: int, run: Run = plainly
) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of a forest's pairs in nats; `run` makes the forwards."""
    total = torch.zeros(len(forest.pairs), dtype=torch.float64)
    buckets = forest.buckets(batch_size)
    for bucket in track(buckets, "scoring", len(buckets), "batches"):
        batch = forest.batch(bucket)
        inputs = _on_device(model, batch.inputs(pad_id))
        logits = run(partial(logits_at, model, inputs, batch.wanted.to(device_of(model))))
        log_probs = torch.log_softmax(logits.float(), dim=-1)[batch.numbers, batch.tokens]
        total.index_add_(0, batch.owners, log_probs.cpu().double())
    return total.float()


def _on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
