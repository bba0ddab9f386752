"""Losses of rows one at a time, by the whole logits: the oracle of batched and cached losses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shears.data.examples import IGNORED, Tokenized


class RowLosses(NamedTuple):
    """Each row's negative log-likelihood, summed over its labelled tokens, and their number."""

    total: Tensor
    num_tokens: Tensor


@torch.no_grad()
def completion_losses(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> RowLosses:
    """Return the rows' losses in nats, in their order."""
    total, num_tokens = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64)
    for number, row in enumerate(rows):
        labels = torch.tensor(row.labels[1:])
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
        total[number] = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        num_tokens[number] = (labels != IGNORED).sum()
    return RowLosses(total, num_tokens)


def mean_completion_loss(model: nn.Module, rows: Sequence[Tokenized], pad_id: int, batch_size: int) -> float:
    """Return the loss per labelled token over all rows, in nats."""
    losses = completion_losses(model, rows, pad_id, batch_size)
    return float(losses.total.double().sum()) / int(losses.num_tokens.sum())
