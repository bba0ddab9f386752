"""The loss of a training: that of its text, and the divergence from a teacher.

K positions that predict a label, V words of the vocabulary, N of them kept, H features before the
head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shears.data.example import IGNORED
from shears.models.properties import own_model
from shears.training.losses import (
    InPieces,
    PieceLoss,
    TokenLosses,
    before_head,
    labelled_positions,
    logits_at,
    packed_predictions,
    padded_predictions,
    pieces,
    piecewise_losses,
)

PIECE = 2**23  # logits that are computed together: 32 MiB in float32, held several times
HeadLoss = Callable[[Float[Tensor, "K V"], slice], Float[Tensor, " K"]]
"""A loss by position, from the logits of some positions and their slice of all positions."""


def kl_from_logits(student_logits: Float[Tensor, "K V"], teacher_logits: Float[Tensor, "K V"]) -> Float[Tensor, " K"]:
    """Return the Kullback-Leibler divergence from the teacher to the student, in nats, float32.

    sum_v p_v (log p_v - log q_v), p of the teacher, q of the student.
    """
    teacher = torch.log_softmax(teacher_logits.float(), dim=-1)
    student = torch.log_softmax(student_logits.float(), dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def kl_from_top_k(
    student_logits: Float[Tensor, "K V"], indices: Int[Tensor, "K N"], log_probs: Float[Tensor, "K N"]
) -> Float[Tensor, " K"]:
    """Return the divergence over N kept words and one bucket of all others, in nats, float32.

    `log_probs` are the teacher's log-probabilities over the whole vocabulary of the words in
    `indices`; the bucket has the rest of the mass, in the student too. It is at most the divergence
    over all words. With N = V there is no bucket.
    """
    result: Tensor = _TopKDivergence.apply(student_logits, indices, log_probs.float())
    return result


class _TopKDivergence(torch.autograd.Function):
    """`kl_from_top_k` and its gradient by the student's logits, in few passes over them.

    With the kept words k, teacher's p and rest r, student's q and rest Q, the loss is sum_k p_k
    (log p_k - log q_k) + r (log r - log Q). Its gradient by a logit is (sum_k p_k + r) q_v - p_v
    for a kept word and (sum_k p_k + r - r / Q) q_v for another.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "K V"], indices: Int[Tensor, "K N"], log_probs: Float[Tensor, "K N"]
    ) -> Float[Tensor, " K"]:
        largest = logits.amax(-1, keepdim=True).float()
        kept_logits = logits.gather(-1, indices).float() - largest
        powers = torch.sub(logits, largest).exp_()  # of all words, in float32
        powers.scatter_(-1, indices, 0.0)
        others = powers.sum(-1, keepdim=True)  # without a difference of two sums, which cancel
        kept = kept_logits.exp()
        total = others + kept.sum(-1, keepdim=True)
        probs = log_probs.exp()
        bucket = indices.shape[-1] < logits.shape[-1]
        rest = (1 - probs.sum(-1, keepdim=True)).clamp(min=0.0) * bucket  # rounding can leave a sum above one
        others = others.clamp(min=torch.finfo(torch.float32).tiny)  # no word but the kept ones has a chance
        losses = (probs * (log_probs - kept_logits + total.log())).sum(-1, keepdim=True)
        losses += torch.xlogy(rest, rest) - rest * (others / total).log()
        if ctx.needs_input_grad[0]:
            mass = probs.sum(-1, keepdim=True) + rest
            ctx.dtype = logits.dtype
            ctx.save_for_backward(powers, mass / total - rest / others, indices, kept * (mass / total) - probs)
        return losses.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, " K"]) -> tuple[Tensor | None, ...]:
        powers, factor, indices, of_kept = ctx.saved_tensors
        by_row = upstream[:, None]
        gradient = torch.mul(powers, by_row * factor).scatter_(-1, indices, by_row * of_kept)
        return gradient.to(ctx.dtype), None, None


class TopK(NamedTuple):
    """The N most likely words, with their log-probabilities over the whole vocabulary."""

    indices: Int[Tensor, "K N"]
    log_probs: Float[Tensor, "K N"]

    def divergence(self, student_logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
        """Return `kl_from_top_k` of some positions."""
        return kl_from_top_k(student_logits, self.indices[rows], self.log_probs[rows])


class Logits(NamedTuple):
    """Logits of all words: `hidden` itself, or the product of `hidden` and the head's `weight`.

    The head runs on the positions that are asked for only: the logits of all K positions need not
    exist at once.
    """

    hidden: Float[Tensor, "K H"]
    weight: Float[Tensor, "V H"] | None = None
    bias: Float[Tensor, " V"] | None = None

    def at(self, rows: slice) -> Float[Tensor, "P V"]:
        """Return the logits of some positions."""
        hidden = self.hidden[rows]
        return hidden if self.weight is None else nn.functional.linear(hidden, self.weight, self.bias)

    def divergence(self, student_logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
        """Return `kl_from_logits` of some positions."""
        return kl_from_logits(student_logits, self.at(rows))

    def top_k(self, count: int) -> TopK:
        """Return the `count` most likely words of every position, computed in pieces."""
        parts = [_top_k(self.at(rows), count) for rows in pieces(len(self.hidden), rows_at_once(self._words()))]
        return TopK(torch.cat([part.indices for part in parts]), torch.cat([part.log_probs for part in parts]))

    def _words(self) -> int:
        return self.hidden.shape[-1] if self.weight is None else len(self.weight)


Distribution = TopK | Logits  # a teacher's, of the next token at K positions


def _top_k(logits: Float[Tensor, "P V"], count: int) -> TopK:
    log_probs, indices = torch.log_softmax(logits.float(), dim=-1).topk(min(count, logits.shape[-1]), dim=-1)
    return TopK(indices, log_probs)


def rows_at_once(words: int) -> int:
    """Return how many positions have at most PIECE logits together, at least one."""
    return max(PIECE // words, 1)


def _by_autograd(loss: HeadLoss, scale: float, rows: int) -> PieceLoss:
    """Return a loss with its gradient by the logits."""

    def compute(
        logits: Float[Tensor, "P V"], piece: slice, with_gradient: bool
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P V"] | None]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_(with_gradient)
            values = loss(leaf, piece)
            total = values.sum() * scale
        return values.detach(), torch.autograd.grad(total, leaf)[0] if with_gradient else None

    return PieceLoss(compute, rows)


@runtime_checkable
class Teacher(Protocol):
    """Gives next-token distributions at K positions of a batch, from memory or from files."""

    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Distribution:
        """Return the targets of the wanted positions, row after row.

        `batch` is one of `trainer.Collator`: input_ids and labels, position_ids that restart with
        every example, `numbers` (of the examples in the training set) and, in packed rows,
        `examples` (of the batch).
        """
        ...


@dataclass(frozen=True)
class Loss:
    """kl times the divergence from a teacher plus cross_entropy times the text's loss, by label.

    Without a teacher it is the loss of the text alone.
    """

    teacher: Teacher | None = None
    kl: float = 0.0
    cross_entropy: float = 1.0

    def of_tokens(
        self, model: nn.Module, inputs: Mapping[str, Tensor], scale: float, *, in_pieces: bool
    ) -> TokenLosses:
        """Return the losses of a batch of `trainer.Collator`, each differentiated with `scale`.

        0 where there is no label. With `in_pieces`, for a model that `properties.takes_pieces`, the
        head runs on some positions at a time; else all K positions have logits at once. A model in
        evaluation mode is measured by the text alone.
        """
        batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
        if self.teacher is not None and model.training:
            wanted = labelled_positions(batch["labels"])
            words = batch["labels"].roll(-1, dims=1)[wanted]
            loss = self._by_position(self.teacher.targets(inputs, wanted), words)
            return losses_behind_head(model, batch, loss, scale, in_pieces=in_pieces)
        if in_pieces:
            return piecewise_losses(model, batch, scale)
        predict = packed_predictions if "examples" in batch else padded_predictions
        predictions = predict(model, batch)
        return TokenLosses(predictions.losses(), predictions.targets, predictions.rows)

    def _by_position(self, distribution: Distribution, words: Int[Tensor, " K"]) -> HeadLoss:
        """Return the weighted sum at the positions of these labels, 0 where there is none."""

        def loss(logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
            labels = words[rows]
            total = torch.where(labels == IGNORED, 0.0, self.kl * distribution.divergence(logits, rows))
            if not self.cross_entropy:
                return total
            text = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
            return total + self.cross_entropy * text

        return loss


def losses_behind_head(
    model: nn.Module, batch: Mapping[str, Tensor], loss: HeadLoss, scale: float, *, in_pieces: bool
) -> TokenLosses:
    """Return a loss at the K `labelled_positions` of packed or padded rows, in order.

    `batch` is as in `losses.packed_predictions` or `losses.padded_predictions`. With `in_pieces`,
    for a model that `properties.takes_pieces`, the head runs on some positions at a time, and every
    loss is expected to weigh `scale` in what is differentiated; else all K positions have logits at
    once.
    """
    wanted = labelled_positions(batch["labels"])
    names = ("input_ids", "position_ids") if "examples" in batch else tuple(batch)
    inputs = {name: batch[name] for name in names}
    if in_pieces:
        hidden = before_head(model, inputs, wanted)
        head: Any = own_model(model).get_output_embeddings()  # type: ignore[operator]
        in_parts = _by_autograd(loss, scale, rows_at_once(len(head.weight)))
        losses: Tensor = InPieces.apply(hidden, head.weight, head.bias, in_parts, scale)
    else:
        losses = loss(logits_at(model, inputs, wanted), slice(None))
    targets = batch["labels"].roll(-1, dims=1)[wanted]
    owners = batch["examples"] if "examples" in batch else torch.arange(len(wanted), device=wanted.device)[:, None]
    return TokenLosses(losses, targets, owners.expand(wanted.shape)[wanted])
