"""Batches hold examples of similar length, every example once, the same order from the same seed and epoch."""

from hypothesis import given
from hypothesis import strategies as st

from shears.adapt.order import BATCHES_PER_POOL, LengthBucketSampler


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
