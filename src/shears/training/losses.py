"""The loss of a training: of its text, and the divergence from a teacher.

Logits are computed only at positions that predict a label, some positions at a time. B examples of T
tokens, K positions that predict a label, P of them at a time, V words of the vocabulary, N words
that are kept of a teacher's prediction, H features before the head.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shears.data.examples import IGNORED
from shears.models.blocks import replaced_forwards
from shears.models.load import forward_parameters, own_model

PIECE = 2**23  # logits that are computed together: 32 MiB in float32, held several times
PROBE = 100.0  # times the hidden states: large enough for a bound of logits to show


class TopK(NamedTuple):
    """The N words that a teacher finds likeliest, with their log-probabilities over the whole vocabulary."""

    indices: Int[Tensor, "K N"]
    log_probs: Float[Tensor, "K N"]


def kl_from_top_k(student_logits: Float[Tensor, "K V"], teacher: TopK) -> Float[Tensor, " K"]:
    """Return the divergence over N kept words and one bucket of all others, in nats, float32.

    With the kept words k, the teacher's p and rest r, the student's q and rest Q, it is sum_k p_k
    (log p_k - log q_k) + r (log r - log Q). It is at most the divergence over all words; with N = V
    there is no bucket.
    """
    logits = student_logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    log_probs = teacher.log_probs.float()
    probs = log_probs.exp()
    divergence = (probs * (log_probs - logits.gather(-1, teacher.indices) + total)).sum(-1)
    if teacher.indices.shape[-1] == logits.shape[-1]:
        return divergence
    rest = (1 - probs.sum(-1)).clamp(min=0.0)  # rounding can leave a sum above one
    # without a difference of two sums, which cancel
    others = logits.scatter(-1, teacher.indices, float("-inf")).logsumexp(-1) - total.squeeze(-1)
    return divergence + torch.xlogy(rest, rest) - rest * others


def labelled_positions(labels: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    return nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "B T"]) -> Float[Tensor, "K V"]:
    """Return the logits at the K wanted positions; compute no others if the head can be hooked."""
    inputs = {name: tensor for name, tensor in batch.items() if name in forward_parameters(model) - {"labels"}}

    # transformers' `logits_to_keep` selects the same positions of every row
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of positions is not static
    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[wanted][None], *args[1:]) if hidden.shape[:2] == wanted.shape else args

    head = own_model(model).get_output_embeddings()  # type: ignore[operator]
    with head.register_forward_pre_hook(choose) if isinstance(head, nn.Module) else nullcontext():
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[wanted] if logits.shape[:2] == wanted.shape else logits.flatten(0, -2)


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, " K"]:
    """Return the negative log-likelihood of every label of a batch in float32, row after row."""
    wanted = labelled_positions(batch["labels"])
    words = batch["labels"].roll(-1, dims=1)[wanted]
    return nn.functional.cross_entropy(logits_at(model, batch, wanted).float(), words, reduction="none")


LossOfLogits = Callable[[Float[Tensor, "P V"], slice], Float[Tensor, " P"]]
"""A loss by position, from the logits of some positions and their slice of all positions."""


def loss_of_labels(
    words: Int[Tensor, " K"], taught: TopK | None = None, kl: float = 0.0, cross_entropy: float = 1.0
) -> LossOfLogits:
    """Return the loss of predicting these words; with a teacher, kl times its divergence is added to a share of it."""
    share = 1.0 if taught is None else cross_entropy

    def loss(logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
        total = torch.zeros(len(logits), device=logits.device)
        if taught is not None:
            total = kl * kl_from_top_k(logits, TopK(taught.indices[rows], taught.log_probs[rows]))
        if share:
            total = total + share * nn.functional.cross_entropy(logits.float(), words[rows], reduction="none")
        return total

    return loss


def summed_in_pieces(
    model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "B T"], loss: LossOfLogits
) -> Float[Tensor, ""]:
    """Return the sum of a loss behind a frozen head, for a model that `has_plain_head`.

    The logits of a piece are gone before those of the next are computed. Each piece's gradient by
    the hidden states is computed with its loss; the backward pass of the sum starts from them.
    """
    head: Any = own_model(model).get_output_embeddings()  # type: ignore[operator]
    with replaced_forwards([head], lambda _: lambda hidden: hidden):
        hidden = logits_at(model, batch, wanted)
    leaf = hidden.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weight = head.weight.to(dtype)  # once, where autocast would convert it for every piece
    size = max(PIECE // len(weight), 1)
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        piece = leaf[rows]
        part = loss(nn.functional.linear(piece, weight, head.bias), rows).sum()
        (gradient[rows],) = torch.autograd.grad(part, piece)
        total += part.detach()
    carrier = (hidden * gradient).sum()
    return total + (carrier - carrier.detach())


@torch.no_grad()
def has_plain_head(model: nn.Module) -> bool:
    """Tell whether a plain frozen head returns the logits; some models scale or bound them behind it."""
    base = own_model(model)
    head = base.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or any(each.requires_grad for each in head.parameters()):
        return False
    outputs: list[Tensor] = []

    def probed(_: nn.Module, args: tuple[Any, ...], _output: Tensor) -> Tensor:
        outputs.append(args[0] * PROBE)
        return outputs[-1]

    with head.register_forward_hook(probed):
        logits = base(input_ids=torch.tensor([[0, 1]], device=head.weight.device), use_cache=False).logits
    return len(outputs) == 1 and torch.equal(logits, outputs[0].to(logits.dtype))
