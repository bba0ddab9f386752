"""The order of training examples: batches of similar length, shuffled, from (seed, epoch) alone."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

BATCHES_PER_POOL = 16  # examples are sorted by length within pools this large: little padding, still a random mix


class LengthBucketSampler(Sampler[int]):
    """Yields indices so that consecutive runs of `batch_size` have similar lengths; reshuffled by `set_epoch`."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (accelerate calls this, also when resuming)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"order/{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.batch_size * BATCHES_PER_POOL
        pools = [sorted(order[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(order), size)]
        batches = [pool[i : i + self.batch_size] for pool in pools for i in range(0, len(pool), self.batch_size)]
        # only the very last pool can end in a short batch; it must stay last, since a loader cuts equal runs
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        for batch in batches + short:
            yield from batch
