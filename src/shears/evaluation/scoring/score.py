"""Log-likelihoods of completions: of the given one, or of each one to choose from; logits only where they count.

N rows, B rows of a batch, K trailing positions, V words of the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.batch_trials import ignores_padding
from shears.data.batches import length_buckets, pad_left, padding
from shears.data.examples import Example, Tokenized, encode, prompts_of
from shears.errors import InputError
from shears.evaluation.scoring.branches import Continuation, Forest, planted
from shears.evaluation.scoring.context import check_lengths
from shears.models.losses import IGNORED, logits_at
from shears.models.losses import completion_losses as token_losses
from shears.progress import track

Run = Callable[[Callable[[], Tensor]], Tensor]
"""Calls a function that makes one forward of the model, and returns what it returns."""


def plainly(forward: Callable[[], Tensor]) -> Tensor:
    """Make a forward, whole."""
    return forward()


class RowLosses(NamedTuple):
    """Each row's negative log-likelihood, summed over its labelled tokens, and how many those are."""

    total: Float[Tensor, " N"]
    num_tokens: Int[Tensor, " N"]


@dataclass(frozen=True)
class Choice:
    """The likeliest choice of an example, by the sum and by the mean over its tokens, and every choice's sum."""

    likeliest: int
    likeliest_per_token: int
    log_likelihoods: tuple[float, ...]


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next(model.parameters()).device


@torch.no_grad()
def completion_losses(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> RowLosses:
    """Return the rows' losses in nats, in their order; computed in batches of about equal lengths.

    Of equal ones where the model does not leave padding out.
    """
    total, num_tokens = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
    lengths = [len(row.input_ids) for row in rows]
    buckets = length_buckets(lengths, batch_size, len(set(lengths)) < 2 or ignores_padding(model))
    for indices in track(buckets, "scoring", len(buckets), "batches"):
        batch = pad_left([rows[index] for index in indices], pad_id)
        losses = token_losses(model, _on_device(model, batch))
        total[indices] = losses.sum(dim=1).cpu()
        num_tokens[indices] = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    return RowLosses(total, num_tokens)


def mean_completion_loss(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> float:
    """Return the loss per labelled token over all rows, in nats; summed in float64."""
    losses = completion_losses(model, rows, pad_id, batch_size)
    tokens = int(losses.num_tokens.sum())
    if not tokens:
        raise InputError("the examples must have completion tokens to score, got none")
    return float(losses.total.double().sum()) / tokens


def choose(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[Choice]:
    """Return each example's likeliest choice; the end of sequence is not scored, as in other evaluations."""
    questions = Questions(model, tokenizer, examples)
    check_lengths(model, questions.lengths, "leave it out")
    return questions.answer(model, batch_size)


class Questions:
    """The choices of examples as rows to score, planned once: `answer` always makes the same forwards."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
        prompts = prompts_of(examples, tokenizer)
        texts = iter(encode([choice for example in examples for choice in example.choices], tokenizer))
        choices = [[next(texts) for _ in example.choices] for example in examples]
        _check_tokens(prompts, choices)
        pairs = [(prompt, ids) for prompt, each in zip(prompts, choices, strict=True) for ids in each]
        self._lengths = [[len(ids) for ids in each] for each in choices]
        self.lengths = [
            len(ids) + max(map(len, each), default=1) - 1 for ids, each in zip(prompts, choices, strict=True)
        ]
        """Of each example, the tokens of the prompt and its longest choice but the last, which is not fed in."""
        self._pad_id, self.forest = padding(tokenizer), planted(model, pairs)

    def answer(self, model: nn.Module, batch_size: int, run: Run = plainly) -> list[Choice]:
        """Return each example's likeliest choice; `run` makes the forwards."""
        sums = iter(forest_log_likelihoods(model, self.forest, self._pad_id, batch_size, run).tolist())
        return [
            _choice(number, [(next(sums), length) for length in lengths])
            for number, lengths in enumerate(self._lengths, start=1)
        ]

    def sample(self, model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Return a small batch as `answer` makes them: the inputs, and the positions whose logits are wanted."""
        trees = self.forest.trees
        rows = self.forest.of(sorted(range(len(trees)), key=lambda row: -len(trees[row]))[-2:])
        return _on_device(model, rows.batch(self._pad_id)), rows.wanted.to(device_of(model))


def _check_tokens(prompts: Sequence[list[int]], choices: Sequence[list[list[int]]]) -> None:
    """Raise InputError for a prompt without tokens, behind which nothing is predicted, and for such a choice."""
    for number, (prompt, each) in enumerate(zip(prompts, choices, strict=True), start=1):
        if not prompt:
            raise InputError(f"a prompt must not be empty, number {number} is; nothing says how likely its choices are")
        if not all(each):
            raise InputError(
                f"every choice must have tokens, for none is always the likeliest; one of number {number} has none"
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


def log_likelihoods(
    model: nn.Module, pairs: Sequence[Continuation], pad_id: int, batch_size: int
) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of each pair, summed over the continuation's tokens, in nats.

    A last token need not be fed in, so that continuations of a prompt that differ in it alone share one forward. Those
    that differ earlier share their prompt's, in one row, where that saves a good deal and the model keeps them apart.
    """
    return forest_log_likelihoods(model, planted(model, pairs), pad_id, batch_size)


@torch.no_grad()
def forest_log_likelihoods(
    model: nn.Module, forest: Forest, pad_id: int, batch_size: int, run: Run = plainly
) -> Float[Tensor, " N"]:
    """Return log p(continuation | prompt) of the pairs of a forest; `run` makes the forwards."""
    total = torch.zeros(len(forest.pairs), dtype=torch.float64)
    buckets = forest.buckets(batch_size)
    for bucket in track(buckets, "scoring", len(buckets), "batches"):
        rows = forest.of(bucket)
        batch, wanted = _on_device(model, rows.batch(pad_id)), rows.wanted.to(device_of(model))
        logits = run(partial(logits_at, model, batch, wanted))
        log_probs = torch.log_softmax(logits.float(), dim=-1)[rows.numbers, rows.tokens]
        total.index_add_(0, rows.owners, log_probs.cpu().double())
    return total.float()


def _on_device(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
