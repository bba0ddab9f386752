"""Distillation in place: smaller sub-adapters learn from what the largest one says, not from the labels alone.

After the in-place distillation of slimmable networks (Yu and Huang, 2019): the largest ranks learn from the labels, the
others also from the distribution over the next token that the largest ranks give at the same step. That teacher costs a
forward without gradients and has no weights of its own.

B examples, K labelled tokens, V words of the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.adapt.elastic import ElasticAdapter
from shears.models.losses import IGNORED, Predictions

Predict = Callable[[nn.Module, Mapping[str, Tensor]], Predictions]


def largest_says(
    model: nn.Module, elastic: ElasticAdapter, predict: Predict, batch: Mapping[str, Tensor]
) -> Float[Tensor, "K V"]:
    """Return the logits of the largest ranks, without gradients and without dropout.

    The active configuration is active again afterwards; ranks by row, which `activate_rows` sets, are not.
    """
    before = elastic.active
    elastic.activate(elastic.space.maximal())
    with torch.no_grad(), _evaluating(model):
        logits = predict(model, batch).logits
    torch.clear_autocast_cache()  # where torch keeps casts of weights that were made without gradients
    if before is not None:
        elastic.activate(before)
    return logits


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


def distilled(
    found: Predictions, losses: Float[Tensor, " K"], teacher: Float[Tensor, "K V"], shares: Float[Tensor, " B"]
) -> Float[Tensor, " K"]:
    """Return (1 - share) x a token's own loss + share x its Kullback-Leibler divergence from the teacher, in nats.

    A share belongs to an example; where there is no label, the loss stays 0.
    """
    share = shares[found.rows]
    learns = (found.targets != IGNORED) & (share > 0)
    own, said = (logits[learns].float().log_softmax(dim=-1) for logits in (found.logits, teacher))
    divergence = torch.nn.functional.kl_div(own, said, reduction="none", log_target=True).sum(dim=-1)
    return ((1 - share) * losses).index_add(0, learns.nonzero()[:, 0], share[learns] * divergence)
