"""Perplexity of a text in windows that do not overlap.

T tokens of a window, V words of the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shears.errors import InputError
from shears.evaluation.statistics import Z95
from shears.models.devices import device_of
from shears.models.losses import check_sequence_length
from shears.progress import track

POSITIONS_AT_ONCE = 128  # turned into float32 log-probabilities: 25 MB for 49 k words
LARGEST = 709.0  # nats; the exponential of more exceeds float64


@dataclass(frozen=True)
class Perplexity:
    """The exponential of the mean loss, its 95 % interval, and the summed loss of every window in nats."""

    value: float
    ci95: tuple[float, float]
    n_tokens: int
    n_windows: int
    window_losses: tuple[float, ...]


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Sequence[int], sequence_length: int, limit: int | None = None) -> Perplexity:
    """Return the perplexity of the first `limit` whole windows; the first token of a window is not predicted.

    A text shorter than a window is one window. The interval is exp(mean +- 1.96 standard errors), over the windows'
    mean losses or, with a single window, over the tokens' losses. InputError for fewer than two tokens, and for a loss
    or an interval whose exponential is not finite.
    """
    _check_length(model, sequence_length, len(tokens))
    length = min(sequence_length, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)[:limit]
    losses = torch.stack(
        [
            _window_losses(model, torch.tensor(tokens[start : start + length]))
            for start in track(starts, "perplexity", len(starts), "windows")
        ]
    ).double()
    mean = float(losses.mean())
    if not math.isfinite(mean):
        raise InputError(f"the model's loss must be finite, got {mean}; it may be damaged, or need --precision fp32")
    half = Z95 * _standard_error(losses.mean(dim=1) if len(losses) > 1 else losses[0])
    if mean + half > LARGEST:
        raise InputError(
            f"the model's loss must be at most {LARGEST:.0f} nats for a perplexity, got {mean:.5g} +- {half:.5g}; "
            "it may be damaged"
        )
    interval = (math.exp(mean - half), math.exp(mean + half))
    return Perplexity(math.exp(mean), interval, losses.numel(), len(losses), tuple(losses.sum(dim=1).tolist()))


def _check_length(model: nn.Module, sequence_length: int, num_tokens: int) -> None:
    check_sequence_length(model, sequence_length)
    if num_tokens < 2:
        raise InputError(f"the text must have at least 2 tokens, got {num_tokens}")


def _standard_error(values: Float[Tensor, " N"]) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _window_losses(model: Any, window: Int[Tensor, " T"]) -> Float[Tensor, " T-1"]:
    ids = window.to(device_of(model))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    pieces = [
        torch.nn.functional.cross_entropy(part.float(), targets, reduction="none")
        for part, targets in zip(logits.split(POSITIONS_AT_ONCE), ids[1:].split(POSITIONS_AT_ONCE), strict=True)
    ]
    return torch.cat(pieces).cpu()
