"""The order of training examples: shuffled, batches of similar length where that saves padding, from (seed, epoch)."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Dataset, Sampler

from shears.data.examples import Tokenized
from shears.models.losses import IGNORED

BATCHES_PER_POOL = 16  # examples are sorted by length within pools this large: little padding, still a random mix
BLANK = -1  # the number of an example without labels, which fills up the last batch of several processes


class Rows(Dataset[tuple[int, Tokenized]]):
    """Training examples with their numbers; BLANK gives two tokens that carry no loss."""

    def __init__(self, rows: Sequence[Tokenized]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tokenized]:
        if index == BLANK:
            return BLANK, Tokenized(self.rows[0].input_ids[:1] * 2, [IGNORED, IGNORED])
        return index, self.rows[index]


class LengthBucketSampler(Sampler[int]):
    """Yields indices so that consecutive runs of `batch_size` have similar lengths; reshuffled by `set_epoch`.

    Equal lengths are as good as none: a plain shuffle. At the end BLANK fills up to a multiple of `multiple`.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, multiple: int = 1) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.missing = -len(lengths) % multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.missing

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
        yield from [BLANK] * self.missing
