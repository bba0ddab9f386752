"""Batches hold every token once, padded where no real token sees it; an epoch reads every example once."""

from hypothesis import given
from hypothesis import strategies as st

from shears.data.examples import Tokenized
from shears.training.batches import EpochOrder, pad, pad_right

ROWS = [Tokenized([5, 6, 7], [-100, 6, 7]), Tokenized([8], [8])]
LENGTHS = st.lists(st.integers(1, 50), max_size=60)


def test_padding_is_on_the_left_without_attention_or_label() -> None:
    batch = pad(ROWS, pad_id=7)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [7, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]


def test_padding_on_the_right_comes_after_the_tokens_without_a_label() -> None:
    batch = pad_right(ROWS, pad_id=7)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 7, 7]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


@given(LENGTHS, st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_reads_every_example_once_each_batch_sorted_by_length(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    order = EpochOrder(lengths, batch_size, seed)
    order.epoch = epoch
    numbers = list(order)
    assert sorted(numbers) == list(range(len(lengths)))
    for start in range(0, len(numbers), batch_size):
        batch = [lengths[number] for number in numbers[start : start + batch_size]]
        assert batch == sorted(batch)
