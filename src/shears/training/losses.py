"""The loss of a training: of its text, and the divergence from a teacher.

Logits are computed only at positions that predict a label. B examples of T tokens, K positions that
predict a label, V words of the vocabulary, N words that are kept of a teacher's prediction.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shears.data.examples import IGNORED
from shears.models.load import forward_parameters, own_model


class TopK(NamedTuple):
    """A teacher's N likeliest words, with their log-probabilities over the whole vocabulary."""

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
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of positions varies
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
    return text_losses(logits_at(model, batch, wanted), words)


def text_losses(
    logits: Float[Tensor, "K V"],
    words: Int[Tensor, " K"],
    teacher: TopK | None = None,
    kl: float = 0.0,
    cross_entropy: float = 1.0,
) -> Float[Tensor, " K"]:
    """Return each word's loss; with a teacher, kl times its divergence plus a share of that."""
    if teacher is None:
        return nn.functional.cross_entropy(logits.float(), words, reduction="none")
    total = kl * kl_from_top_k(logits, teacher)
    if cross_entropy:
        total = total + cross_entropy * nn.functional.cross_entropy(logits.float(), words, reduction="none")
    return total
