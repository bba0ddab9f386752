"""Rows that a tokenizer has been over already: `input_ids`, and perhaps the `attention_mask` of their padding."""

import logging

from shears.data.rows import Row
from shears.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_ID = 2**63 - 1  # that a tensor holds


def token_rows(source: str, rows: list[Row]) -> list[list[int]]:
    """Return the token ids of rows that hold `input_ids`, as they are but for padding.

    InputError, which names the row of the source, for ids or masks that are none.
    """
    logger.info("%s holds input_ids: all %d rows are used as they are", source, len(rows))
    sequences = []
    for number, row in enumerate(rows, start=1):
        ids = row.get("input_ids")
        if (
            not isinstance(ids, list)
            or not ids
            or not all(type(token) is int and 0 <= token <= LARGEST_ID for token in ids)
        ):
            raise InputError(f"input_ids must be a list of token ids, row {number} of {source} has {str(ids)[:40]}")
        sequences.append(_unpadded(ids, row.get("attention_mask"), f"row {number} of {source}"))
    return sequences


def _unpadded(ids: list[int], mask: object, where: str) -> list[int]:
    """Return the ids that an attention mask, where a tokenizer left one beside them, calls text."""
    if mask is None:
        return ids
    if not isinstance(mask, list) or len(mask) != len(ids) or not all(bit in (0, 1) for bit in mask) or not any(mask):
        raise InputError(f"attention_mask must be a 0 or 1 an id, and not 0 for all, {where} has {str(mask)[:40]}")
    return [token for token, bit in zip(ids, mask, strict=True) if bit]
