"""Examples longer than a model's context: an error if the model has no positions for them, else a warning."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from shears.errors import InputError
from shears.models.properties import num_positions, own_model

logger = logging.getLogger(__name__)
OFFSET = 8  # rows that a table of positions may have beyond the context; OPT's has 2


def check_lengths(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Refuse examples that the model cannot take, and warn of those beyond the context that it was made for."""
    refuse_beyond(model, lengths, advice)
    warn_beyond(model, lengths)


def refuse_beyond(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Raise InputError for the first example that needs more positions than the model has."""
    context = num_positions(model)
    if context is None or max(lengths, default=0) <= context or not _positions_end(model, context):
        return
    number, length = next((number, length) for number, length in enumerate(lengths, start=1) if length > context)
    raise InputError(
        f"every example must fit into the model's {context} positions, number {number} comes to {length} tokens; "
        f"{advice}"
    )


def warn_beyond(model: nn.Module, lengths: Sequence[int]) -> None:
    """Log how many examples exceed the context that the model was made for."""
    context = num_positions(model)
    if context is not None and (beyond := [length for length in lengths if length > context]):
        message = (
            "%d of %d examples have more tokens (up to %d) than the %d positions that the model was made for; "
            "their figures mean little"
        )
        logger.warning(message, len(beyond), len(lengths), max(beyond), context)


def _positions_end(model: nn.Module, context: int) -> bool:
    """Return whether a model has a table with a row for each position, beside that of its words.

    MPT computes a table of biases from its `max_seq_len`.
    """
    own: Any = own_model(model)
    words = set(own.get_input_embeddings().modules())
    tables = [part.weight for part in own.modules() if isinstance(part, nn.Embedding) and part not in words]
    tables += [buffer for buffer in own.buffers() if buffer.ndim == 2]
    return hasattr(own.config, "max_seq_len") or any(context <= len(table) <= context + OFFSET for table in tables)
