"""Tokenized examples as padded batches, and the order in which a training reads them.

B examples, T tokens of the longest.
"""

import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from shears.data.examples import IGNORED, Tokenized


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up batches; 0 for a tokenizer without one, since no real token sees it."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def pad(rows: Sequence[Tokenized], pad_id: int) -> dict[str, Tensor]:
    """Return input_ids, attention_mask, position_ids and labels, each Int "B T", padded on the left.

    Positions count from each row's first real token, so that a row's logits are the same in every
    batch. Completions end together.
    """
    length = max(len(row.input_ids) for row in rows)

    def filled(lines: Iterable[list[int]], value: int) -> Tensor:
        return torch.tensor([[value] * (length - len(line)) + line for line in lines])

    mask = filled(([1] * len(row.input_ids) for row in rows), 0)
    return {
        "input_ids": filled((row.input_ids for row in rows), pad_id),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        "labels": filled((row.labels for row in rows), IGNORED),
    }


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
    """Return the indices in batches of similar lengths; the longest first, to see a lack of memory."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class EpochOrder(Sampler[int]):
    """Yields the indices of an epoch in random batches, each sorted by length; `set_epoch` reshuffles them.

    The micro-batches of a step then have little padding. The order is a function of (seed, epoch).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"order/{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # a short batch must stay the last one, because a loader cuts equal runs
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        for batch in batches + short:
            yield from sorted(batch, key=self.lengths.__getitem__)
