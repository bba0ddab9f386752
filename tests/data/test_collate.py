"""Batches: padding on the left that carries no label, and buckets of about equal lengths."""

from hypothesis import given
from hypothesis import strategies as st

from shears.data.collate import length_buckets, pad_left
from shears.data.examples import Tokenized
from shears.models.losses import kept_logits

ROWS = [Tokenized([5, 6, 7], [-100, 6, 7]), Tokenized([8], [8])]


def test_padding_is_on_the_left_without_attention_or_label() -> None:
    batch = pad_left(ROWS, pad_id=7)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [7, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 8]]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), min_size=1, max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_logits_are_kept_only_from_one_before_the_longest_completion(pieces: list[tuple[list[int], list[int]]]) -> None:
    rows = [Tokenized([*prompt, *completion], [-100] * len(prompt) + completion) for prompt, completion in pieces]
    labels = pad_left(rows, pad_id=0)["labels"]
    assert kept_logits(labels) == max(len(completion) for _, completion in pieces) + 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_buckets_hold_every_index_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = length_buckets(lengths, batch_size)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
