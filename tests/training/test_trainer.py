"""Batches hold examples of similar length, every example once, the same order from the same seed and epoch."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.training.trainer import BATCHES_PER_POOL, BLANK, LengthBucketSampler, NumberedExamples


@given(st.lists(st.integers(1, 99), max_size=200), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_example_comes_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    sampler = LengthBucketSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert list(sampler) == order


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    sampler = LengthBucketSampler(list(range(64)), 4, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthBucketSampler(list(range(64)), 4, seed=1)) != first


def test_batches_waste_little_on_padding() -> None:
    lengths = [10 + (index * 37) % 90 for index in range(16 * BATCHES_PER_POOL)]
    order = list(LengthBucketSampler(lengths, 16, seed=3))
    batches = [[lengths[index] for index in order[i : i + 16]] for i in range(0, len(order), 16)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.08 * sum(lengths)


def test_the_last_batch_of_several_processes_is_filled_up_with_blanks() -> None:
    sampler = LengthBucketSampler([1] * 10, 4, seed=0, multiple=4)
    order = list(sampler)
    assert len(order) == len(sampler) == 12
    assert order[-2:] == [BLANK, BLANK]
    rows = NumberedExamples([Tokenized([5, 6], [IGNORED, 6])] * 10)
    assert rows[BLANK] == (BLANK, Tokenized([5, 5], [IGNORED, IGNORED]))
    assert rows[3] == (3, rows.rows[3])
    assert len(rows) == 10


def test_equal_lengths_are_a_plain_shuffle() -> None:
    order = list(LengthBucketSampler([1] * 400, 4, seed=0))
    assert sorted(order) == list(range(400))
    near = sum(abs(a - b) < 8 for a, b in pairwise(order))
    assert near < 40
