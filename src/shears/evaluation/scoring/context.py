"""Examples longer than a model's context: refused where its positions end there, else said."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from shears.errors import InputError
from shears.models.losses import num_positions, own_model

logger = logging.getLogger(__name__)
OFFSET = 8  # rows that a table of positions may have beyond the context; OPT's has 2


def check_lengths(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Refuse what a model cannot take, and warn of what it was not made for."""
    refuse_beyond(model, lengths, advice)
    warn_beyond(model, lengths)


def refuse_beyond(model: nn.Module, lengths: Sequence[int], advice: str) -> None:
    """Raise InputError naming the first example of too many tokens for a model that has no positions for more."""
    context = num_positions(model)
    if context is None or max(lengths, default=0) <= context or not _ends(model, context):
        return
    number, length = next((number, length) for number, length in enumerate(lengths, start=1) if length > context)
    raise InputError(
        f"every example must fit into the model's {context} positions, number {number} comes to {length} tokens; "
        f"{advice}"
    )


def warn_beyond(model: nn.Module, lengths: Sequence[int]) -> None:
    """Log how many examples have more tokens than a model was made for that computes on all the same."""
    context = num_positions(model)
    if context is not None and (beyond := [length for length in lengths if length > context]):
        logger.warning(
            "%d of %d examples come to more tokens (up to %d) than the %d positions the model was made for; what it "
            "makes of them means little", len(beyond), len(lengths), max(beyond), context,
        )  # fmt: skip


def _ends(model: nn.Module, context: int) -> bool:
    """Tell whether a model has a table of positions, a row each, beside that of its words; MPT makes one of biases."""
    own: Any = own_model(model)
    words = set(own.get_input_embeddings().modules())
    tables = [part.weight for part in own.modules() if isinstance(part, nn.Embedding) and part not in words]
    tables += [buffer for buffer in own.buffers() if buffer.ndim == 2]
    return hasattr(own.config, "max_seq_len") or any(context <= len(table) <= context + OFFSET for table in tables)
