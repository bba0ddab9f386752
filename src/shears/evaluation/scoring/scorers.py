"""Scores of N examples in fixed batches, so that all configurations make the same forwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.data.example import IGNORED
from shears.data.examples import Example, Tokenized
from shears.errors import InputError
from shears.evaluation.scoring.score import Questions, Run, check_lengths
from shears.models.devices import device_of
from shears.training.batches import length_buckets, pad_right
from shears.training.losses import labelled_positions, logits_at, token_losses


@runtime_checkable
class Scorer(Protocol):
    """Scores examples; it always makes the same forwards in the same order.

    A figure is the sum of the values over the sum of `weights`, one for each example.
    """

    model: nn.Module
    weights: Float64[Tensor, " N"]

    def measure(self, run: Run) -> Float64[Tensor, " N"]:
        """Return the value of each example."""

    def num_positions(self) -> int:
        """Return the tokens of all forwards, padding included."""

    def trial(self) -> "Trial":
        """Return small forwards like those of `measure`."""


class Trial(NamedTuple):
    """Two small forwards of equal shapes on different tokens, to try what a model supports."""

    first: Callable[[], Tensor]
    second: Callable[[], Tensor]


def _trial(inputs: dict[str, Tensor], forward: Callable[[dict[str, Tensor]], Tensor]) -> Trial:
    other = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
    return Trial(partial(forward, inputs), partial(forward, other))


@dataclass(frozen=True)
class ScoringBatch:
    """The tensors of one forward, and the numbers of its examples."""

    numbers: Sequence[int]
    tensors: dict[str, Tensor]


class LossScorer:
    """Values: negative log-likelihoods in nats, summed over labelled tokens; weights: their number.

    InputError if no token has a label.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> None:
        self.model = model
        self._pad_id = pad_id
        self._rows = [Tokenized(row.input_ids, [IGNORED, *row.labels[1:]]) for row in rows]  # nothing predicts a first
        self.weights = torch.tensor([sum(label != IGNORED for label in row.labels) for row in self._rows]).double()
        if not self.weights.sum():
            raise InputError("the examples must have completion tokens to score, got none")
        buckets = length_buckets([len(row.input_ids) for row in self._rows], batch_size)
        self._batches = [
            ScoringBatch(numbers, self._tensors([self._rows[number] for number in numbers])) for numbers in buckets
        ]

    def _tensors(self, rows: Sequence[Tokenized]) -> dict[str, Tensor]:
        return {name: each.to(device_of(self.model)) for name, each in pad_right(rows, self._pad_id).items()}

    def measure(self, run: Run) -> Float64[Tensor, " N"]:
        """Return the loss of each example, summed in float64."""
        values = torch.zeros(len(self._rows), dtype=torch.float64)
        for batch in self._batches:
            values[list(batch.numbers)] = self._summed(run, batch)
        return values

    @torch.no_grad()
    def _summed(self, run: Run, batch: ScoringBatch) -> Float64[Tensor, " N"]:
        losses = run(partial(token_losses, self.model, batch.tensors)).double().cpu()
        owners = labelled_positions(batch.tensors["labels"]).nonzero()[:, 0].cpu()
        return torch.zeros(len(batch.numbers), dtype=torch.float64).index_add_(0, owners, losses)

    def num_positions(self) -> int:
        """Return the tokens of all forwards, padding included."""
        return sum(batch.tensors["input_ids"].numel() for batch in self._batches)

    def trial(self) -> Trial:
        """Return small forwards like those of `measure`."""
        rows = sorted(self._rows, key=lambda row: len(row.input_ids))[:2]
        return _trial(self._tensors(rows), partial(token_losses, self.model))


class ChoiceScorer:
    """Values: 1 if the likeliest choice is the answer, else 0. InputError without choices."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
    ) -> None:
        check_choices(examples)
        self.model = model
        self._batch_size = batch_size
        self._examples = examples
        self._questions = Questions(model, tokenizer, examples)
        check_lengths(model, self._questions.lengths, "leave it out")
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, run: Run) -> Float64[Tensor, " N"]:
        """Return, for each example, 1 if it is answered rightly, else 0."""
        choices = self._questions.answer(self.model, self._batch_size, run)
        pairs = zip(self._examples, choices, strict=True)
        right = [example.choices[choice.likeliest] == example.answer for example, choice in pairs]
        return torch.tensor(right, dtype=torch.float64)

    def num_positions(self) -> int:
        """Return the tokens of all forwards, padding included."""
        return self._questions.forest.num_positions(self._batch_size)

    def trial(self) -> Trial:
        """Return small forwards like those of `measure`."""
        inputs, wanted = self._questions.sample(self.model)
        return _trial(inputs, lambda tensors: logits_at(self.model, tensors, wanted))


def check_choices(examples: Sequence[Example]) -> None:
    """Raise InputError for an example without choices, or without an answer among them."""
    for number, example in enumerate(examples, start=1):
        if not example.choices or example.answer is None:
            raise InputError(
                f"task choices needs rows with choices and an answer among them, row {number} has none; add the "
                "column choices (a list), or end the instruction in 'Answer format: a/b/c'"
            )
        if not all(choice.strip() for choice in example.choices):
            raise InputError(
                f"every choice must have text, for one without text is always the likeliest; row {number} has "
                f"{example.choices}"
            )
