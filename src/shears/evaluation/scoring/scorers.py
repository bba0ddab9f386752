"""Scores of examples in fixed batches, so that all configurations that are compared make the same
forwards.

`Slopes` predicts how losses change with the ranks. N examples of a part, R ranks, B rows or packed
examples of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter, adapted_layers, factors_of, masked_module
from shears.adapt.space import RankConfig, SearchSpace
from shears.data.example import IGNORED
from shears.data.examples import Example, Tokenized
from shears.errors import InputError
from shears.evaluation.scoring.score import Questions, Run, check_lengths
from shears.models.devices import device_of
from shears.models.properties import num_positions
from shears.models.sparse_adapter import MASK
from shears.training.batches import PACK_TOKENS, ignores_padding, keeps_apart, length_buckets, pack, pad
from shears.training.losses import completion_losses, logits_at, packed_losses

Parts = Sequence[Sequence[int]]
"""The examples' numbers, split into parts that are scored one after the other."""


@dataclass(frozen=True)
class Slopes:
    """For each group, the slope of each example's loss along each rank, at the configuration
    `origin`.

    The mask of a rank is a factor in the forward: 0, or the space's factor of its group's rank (1
    unless nested). The gradient of the loss with respect to it approximates the change from another
    mask.
    """

    space: SearchSpace
    origin: RankConfig
    by_group: Mapping[str, Float[Tensor, "N R"]]

    def predict(self, ranks: RankConfig) -> Float[Tensor, " N"]:
        """Return the change of each example's loss from the origin to a configuration, to first order."""
        total = torch.zeros(len(next(iter(self.by_group.values()))), dtype=torch.float64)
        for group, slopes in self.by_group.items():
            if group in self.space.factors:
                for rank, sign in ((ranks[group], 1), (self.origin[group], -1)):
                    total += sign * self.space.factor(group, rank) * slopes[:, :rank].double().sum(dim=1)
                continue
            low, high = sorted((ranks[group], self.origin[group]))
            if low < high:
                change = slopes[:, low:high].double().sum(dim=1)
                total += change if ranks[group] == high else -change
        return total

    def predict_sum(self, ranks: RankConfig) -> float:
        """Return the sum of `predict` over the examples, from sums that are computed once."""
        sums = self._sums
        factor = self.space.factor
        return sum(
            factor(group, rank) * sums[group][rank]
            - factor(group, self.origin[group]) * sums[group][self.origin[group]]
            for group, rank in ranks.items()
        )

    @cached_property
    def _sums(self) -> dict[str, list[float]]:
        """For each group, the change of the loss of all examples from its first 0, 1, ... R ranks."""
        return {
            group: [0.0, *slopes.double().sum(dim=0).cumsum(dim=0).tolist()] for group, slopes in self.by_group.items()
        }


def measure_slopes(
    elastic: ElasticAdapter,
    origin: RankConfig,
    batches: Sequence[tuple[Sequence[int], Tensor | None]],
    loss: Callable[[int], Tensor],
) -> Slopes:
    """Return the slopes of the summed loss that `loss(number)` computes for each batch.

    A batch is the numbers of its examples and, for packed rows, the index among them of each
    token's example (Int "P L", negative for none). The adapter is activated again as it was before.
    """
    num_examples = sum(len(examples) for examples, _ in batches)
    before = elastic.active
    slopes = {group: torch.zeros(num_examples, ranks[0]) for group, ranks in elastic.space.ranks.items()}
    for number, (examples, owners) in enumerate(batches):
        factors = _factors(elastic, origin, len(examples))
        _install(elastic, factors, owners)
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(number), list(factors.values()))
        for group, gradient in zip(factors, gradients, strict=True):
            slopes[group][list(examples)] = gradient.cpu()
    elastic.activate(before or origin)
    return Slopes(elastic.space, origin, slopes)


def _factors(elastic: ElasticAdapter, origin: RankConfig, count: int) -> dict[str, Float[Tensor, "B R"]]:
    """Return the masks of the configuration, one copy for each example, that require gradients."""
    device = next(elastic.model.parameters()).device
    masks = {}
    for group, ranks in elastic.space.ranks.items():
        kept = (torch.arange(ranks[0], device=device) < origin[group]).float()
        mask = kept * elastic.space.factor(group, origin[group])
        masks[group] = mask.repeat(count, 1).requires_grad_()
    return masks


def _install(elastic: ElasticAdapter, factors: Mapping[str, Tensor], owners: Tensor | None) -> None:
    layers = dict(adapted_layers(elastic.model, elastic.adapter))
    for group, names in elastic.space.modules.items():
        mask = factors[group][:, None] if owners is None else factors[group][owners.clamp(min=0)]
        for name in names:
            a, _ = factors_of(layers[name], elastic.adapter)
            missing = len(a) - mask.shape[-1]  # of a layer with more ranks than its group
            whole = torch.nn.functional.pad(mask, (0, missing)) if missing else mask
            masked_module(layers[name], elastic.adapter).register_buffer(MASK, whole, persistent=False)


@runtime_checkable
class Scorer(Protocol):
    """Scores examples part by part; scoring a part always makes the same forwards in the same
    order.

    A figure is the sum of the values over the sum of `weights`, which has a weight for each example
    of all parts.
    """

    model: nn.Module
    parts: Parts
    weights: Float64[Tensor, " N"]

    def measure(self, part: int, run: Run) -> Float64[Tensor, " N"]:
        """Return the value of each of the part's examples, in their order."""

    def num_positions(self) -> int:
        """Return the tokens of all forwards of all parts, padding included."""

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
    """The tensors of one forward, and the place in the part of each of its examples."""

    places: Sequence[int]
    tensors: dict[str, Tensor]


class LossScorer:
    """Values are an example's negative log-likelihood in nats, summed over its labelled tokens;
    weights their number.

    Examples are packed into rows if the model keeps them apart, else padded in buckets of similar
    lengths if it ignores padding, else put in buckets of equal lengths. InputError if no token has
    a label.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int, parts: Parts | None = None
    ) -> None:
        self.model = model
        self._pad_id = pad_id
        self.parts: Parts = [range(len(rows))] if parts is None else parts
        # nothing predicts the first token of a row; in a packed row, the example before it would
        self._rows = [Tokenized(row.input_ids, [IGNORED, *row.labels[1:]]) for row in rows]
        self.packed = keeps_apart(model)
        self._padded = self.packed or ignores_padding(model)
        self._batch_size_with_gradient = max(batch_size // 4, 1)  # the graph takes a multiple of the memory
        self.weights = torch.tensor([sum(label != IGNORED for label in row.labels) for row in self._rows]).double()
        if not self.weights.sum():
            raise InputError("the examples must have completion tokens to score, got none")
        self._batches = [self._batched([self._rows[number] for number in part], batch_size) for part in self.parts]

    def _batched(self, rows: Sequence[Tokenized], batch_size: int) -> list[ScoringBatch]:
        buckets = length_buckets([len(row.input_ids) for row in rows], batch_size, self._padded)
        return [ScoringBatch(places, self._tensors([rows[place] for place in places])) for places in buckets]

    def _tensors(self, rows: Sequence[Tokenized]) -> dict[str, Tensor]:
        limit = num_positions(self.model)
        batch = pack(rows, PACK_TOKENS, self._pad_id, limit) if self.packed else pad(rows, self._pad_id)
        return {name: tensor.to(device_of(self.model)) for name, tensor in batch.items()}

    def measure(self, part: int, run: Run) -> Float64[Tensor, " N"]:
        """Return the loss of each of the part's examples, summed in float64."""
        values = torch.zeros(len(self.parts[part]), dtype=torch.float64)
        for batch in self._batches[part]:
            values[list(batch.places)] = self._summed(run, batch)
        return values

    def _token_losses(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the losses of labelled tokens: K for packed rows, B x K for padded ones."""
        return packed_losses(self.model, tensors)[0] if self.packed else completion_losses(self.model, tensors)

    @torch.no_grad()
    def _summed(self, run: Run, batch: ScoringBatch) -> Float64[Tensor, " N"]:
        losses = run(partial(self._token_losses, batch.tensors)).double().cpu()
        if not self.packed:
            return losses.sum(dim=1)
        owners = batch.tensors["examples"][:, :-1][batch.tensors["labels"][:, 1:] != IGNORED].cpu()
        total = torch.zeros(len(batch.places), dtype=torch.float64)
        return total.index_add_(0, owners, losses) if len(owners) else total

    def slopes(self, elastic: ElasticAdapter, origin: RankConfig) -> Slopes:
        """Return how the values change with the ranks around a configuration, in the order of the parts."""
        rows = [self._rows[number] for part in self.parts for number in part]
        batches = self._batched(rows, self._batch_size_with_gradient)
        owners = [(batch.places, batch.tensors.get("examples")) for batch in batches]
        return measure_slopes(elastic, origin, owners, lambda number: self._token_losses(batches[number].tensors).sum())

    def num_positions(self) -> int:
        """Return the tokens of all forwards of all parts, padding included."""
        return sum(batch.tensors["input_ids"].numel() for batches in self._batches for batch in batches)

    def trial(self) -> Trial:
        """Return small forwards like those of `measure`."""
        rows = sorted(self._rows, key=lambda row: len(row.input_ids))[:2]
        return _trial(self._tensors(rows), self._token_losses)


class ChoiceScorer:
    """Values: 1 if the likeliest choice is the answer, else 0. InputError without choices."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        batch_size: int,
        parts: Parts | None = None,
    ) -> None:
        check_choices(examples)
        self.model = model
        self._batch_size = batch_size
        self.parts: Parts = [range(len(examples))] if parts is None else parts
        self._examples = [[examples[number] for number in part] for part in self.parts]
        self._questions = [Questions(model, tokenizer, part) for part in self._examples]
        parts_and_questions = zip(self.parts, self._questions, strict=True)
        lengths = dict(pair for part, each in parts_and_questions for pair in zip(part, each.lengths, strict=True))
        check_lengths(model, [lengths[number] for number in sorted(lengths)], "leave it out")
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, part: int, run: Run) -> Float64[Tensor, " N"]:
        """Return, for each of the part's examples, 1 if it is answered rightly, else 0."""
        choices = self._questions[part].answer(self.model, self._batch_size, run)
        pairs = zip(self._examples[part], choices, strict=True)
        right = [example.choices[choice.likeliest] == example.answer for example, choice in pairs]
        return torch.tensor(right, dtype=torch.float64)

    def num_positions(self) -> int:
        """Return the tokens of all forwards of all parts, padding included."""
        return sum(questions.forest.num_positions(self._batch_size) for questions in self._questions)

    def trial(self) -> Trial:
        """Return small forwards like those of `measure`."""
        inputs, wanted = self._questions[0].sample(self.model)
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
