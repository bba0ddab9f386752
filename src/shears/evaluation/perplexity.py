"""Perplexity of a text in windows that do not overlap.

T tokens of a window, V words of the vocabulary.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.statistics import Z95
from shears.models.devices import device_of
from shears.models.properties import num_positions, refuse_longer
from shears.progress import track

logger = logging.getLogger(__name__)
POSITIONS_AT_ONCE = 128  # turned into float32 log-probabilities: 25 MB for 49 k words
MAX_LOSS = 709.0  # nats; the exponential of more exceeds float64


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Sequence[int], sequence_length: int, limit: int | None = None) -> Evaluation:
    """Return the perplexity of the first `limit` whole windows, first tokens not predicted.

    A shorter text is one window. Records hold each window's summed loss in nats. The interval is
    exp(mean +- 1.96 standard errors) over windows or, with one window, over tokens. InputError for
    fewer than two tokens, or a loss or interval without a finite exponential.
    """
    refuse_longer(sequence_length, num_positions(model))
    if len(tokens) < 2:
        raise InputError(f"the text must have at least 2 tokens, got {len(tokens)}")
    length = min(sequence_length, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)[:limit]
    windows = (torch.tensor(tokens[start : start + length]) for start in starts)
    tracked = track(windows, "perplexity", len(starts), "windows")
    losses = torch.stack([_window_losses(model, window) for window in tracked]).double()
    mean = float(losses.mean())
    values = losses.mean(dim=1) if len(losses) > 1 else losses[0]
    half = Z95 * (float(values.std()) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    if not mean + half <= MAX_LOSS:  # nan too
        raise InputError(
            f"the model's loss must be finite and at most {MAX_LOSS:.0f} nats for a perplexity, got {mean:.5g} +- "
            f"{half:.5g}; the model may be damaged, or need --precision fp32"
        )
    value, low, high = (math.exp(nats) for nats in (mean, mean - half, mean + half))
    message = "perplexity %.4g (%.4g to %.4g) on %d windows of %d tokens"
    logger.info(message, value, low, high, len(losses), length)
    sums = enumerate(losses.sum(dim=1).tolist())
    records = [{"window": index, "nll": nll, "tokens": length - 1} for index, nll in sums]
    details = {"windows": float(len(losses))}
    return Evaluation("perplexity", "perplexity", value, losses.numel(), (low, high), records, details)


def _window_losses(model: Any, window: Int[Tensor, " T"]) -> Float[Tensor, " T-1"]:
    ids = window.to(device_of(model))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    pieces = [
        torch.nn.functional.cross_entropy(part.float(), targets, reduction="none")
        for part, targets in zip(logits.split(POSITIONS_AT_ONCE), ids[1:].split(POSITIONS_AT_ONCE), strict=True)
    ]
    return torch.cat(pieces).cpu()
