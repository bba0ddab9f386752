"""Tokenized examples as padded batches, and the order in which a training reads them.

B examples, T tokens of the longest.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from shears.data.examples import IGNORED, Tokenized


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up batches; 0 if there is none, since no real token sees it."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def pad(rows: Sequence[Tokenized], pad_id: int) -> dict[str, Tensor]:
    """Return left-padded input_ids, attention_mask, position_ids and labels, each Int "B T".

    Positions count from each row's first real token, so that a row's logits are the same in every
    batch.
    """
    lengths = [len(row.input_ids) for row in rows]
    batch = pad_right([Tokenized(row.input_ids[::-1], row.labels[::-1]) for row in rows], pad_id)
    turned = {name: tensor.flip(1) for name, tensor in batch.items()}
    mask = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths])
    return {**turned, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def pad_right(rows: Sequence[Tokenized], pad_id: int) -> dict[str, Tensor]:
    """Return input_ids and labels, each Int "B T", padded on the right.

    A causal model, recurrent ones included, needs no mask and no positions for them: no real token
    comes after padding.
    """
    length = max(len(row.input_ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.input_ids + [pad_id] * (length - len(row.input_ids)) for row in rows]),
        "labels": torch.tensor([row.labels + [IGNORED] * (length - len(row.labels)) for row in rows]),
    }


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the indices in batches of similar lengths, longest first, to see a lack of memory."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(eq=False)
class EpochOrder(Sampler[int]):
    """Yields an epoch's indices in random batches sorted by length; seed and epoch decide them."""

    lengths: Sequence[int]
    batch_size: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"order/{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # a short batch must stay the last one, because a loader cuts equal runs
        short = [batches.pop()] if len(order) % self.batch_size else []
        generator.shuffle(batches)
        for batch in batches + short:
            yield from sorted(batch, key=self.lengths.__getitem__)
