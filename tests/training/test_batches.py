"""Packed rows hold every token once, in rows of about equal length, with positions that start anew."""

from hypothesis import given
from hypothesis import strategies as st

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.training.batches import NO_EXAMPLE, balanced, length_buckets, pack, pad
from shears.training.losses import kept_logits

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 100))
def test_groups_hold_every_index_once_and_are_balanced(lengths: list[int], capacity: int) -> None:
    groups = balanced(lengths, capacity)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert len(groups) <= -(-2 * sum(lengths) // capacity)
    assert max(sums) <= sum(lengths) / len(groups) + max(lengths)  # list scheduling (Graham, 1966)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 90))
def test_no_row_has_more_than_a_model_has_positions(lengths: list[int], capacity: int, limit: int) -> None:
    groups = balanced(lengths, capacity, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in group) for group in groups]
    assert max(sums) <= max(limit, *lengths)
    free = balanced(lengths, capacity)
    if max(sum(lengths[index] for index in group) for group in free) <= limit:
        assert groups == free


@given(LENGTHS, st.integers(1, 100))
def test_a_pack_holds_the_example_of_every_token(lengths: list[int], capacity: int) -> None:
    rows = [
        Tokenized([100 * index + place for place in range(length)], [IGNORED, *range(1, length)])
        for index, length in enumerate(lengths)
    ]
    batch = pack(rows, capacity, pad_id=7)
    assert len({tensor.shape for tensor in batch.values()}) == 1
    for index, row in enumerate(rows):
        mine = batch["examples"] == index
        assert batch["input_ids"][mine].tolist() == row.input_ids
        assert batch["labels"][mine].tolist() == row.labels
        assert batch["position_ids"][mine].tolist() == list(range(len(row.input_ids)))
    filler = batch["examples"] == NO_EXAMPLE
    assert (batch["input_ids"][filler] == 7).all()
    assert (batch["labels"][filler] == IGNORED).all()
    assert not batch["position_ids"][filler].any()


def test_a_few_long_examples_are_not_spread_over_many_rows() -> None:
    assert [len(group) for group in balanced([10] * 4, 1000)] == [4]
    lengths = [200, 150, 150, 150, 150, 200, 100, 100]
    rows, longest = len(balanced(lengths, 256)), max(sum(lengths[i] for i in group) for group in balanced(lengths, 256))
    assert rows * longest <= 1.05 * sum(lengths)
    assert longest <= 2 * 256


def test_a_packed_row_is_its_examples_one_behind_the_other() -> None:
    rows = [Tokenized([1, 2, 3], [IGNORED, 2, 3])] * 3
    batch = pack(rows, 100, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3] * 3]
    assert batch["examples"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]


ROWS = [Tokenized([5, 6, 7], [-100, 6, 7]), Tokenized([8], [8])]


def test_padding_is_on_the_left_without_attention_or_label() -> None:
    batch = pad(ROWS, pad_id=7)
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
    labels = pad(rows, pad_id=0)["labels"]
    assert kept_logits(labels) == max(len(completion) for _, completion in pieces) + 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_buckets_hold_every_index_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = length_buckets(lengths, batch_size)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
