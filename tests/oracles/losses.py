"""Losses of rows one batch at a time, padded: the oracle of packed and cached losses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.properties import ignores_padding
from shears.training.batches import length_buckets, pad
from shears.training.losses import completion_losses as token_losses


class RowLosses(NamedTuple):
    """Each row's negative log-likelihood, summed over its labelled tokens, and their number."""

    total: Tensor
    num_tokens: Tensor


@torch.no_grad()
def completion_losses(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> RowLosses:
    """Return the rows' losses in nats, in their order."""
    total, num_tokens = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
    lengths = [len(row.input_ids) for row in rows]
    for indices in length_buckets(lengths, batch_size, len(set(lengths)) < 2 or ignores_padding(model)):
        batch = pad([rows[index] for index in indices], pad_id)
        total[indices] = token_losses(model, batch).sum(dim=1)
        num_tokens[indices] = (batch["labels"][:, 1:] != IGNORED).sum(dim=1)
    return RowLosses(total, num_tokens)


def mean_completion_loss(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> float:
    """Return the loss per labelled token over all rows, in nats."""
    losses = completion_losses(model, rows, pad_id, batch_size)
    return float(losses.total.double().sum()) / int(losses.num_tokens.sum())
