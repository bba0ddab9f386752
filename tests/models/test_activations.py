"""Hidden states are read as they were written, for any budget, and no file stays."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.models.activations import Activations

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def in_memory(activations: Activations) -> int:
    """Return the bytes really held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in activations._kept.values())


@settings(max_examples=60)
@given(
    budget=st.one_of(st.none(), st.integers(0, 400)),
    steps=st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 40), st.sampled_from(DTYPES)), min_size=1, max_size=15),
)
def test_any_sequence_of_writes_reads_back_within_the_budget(
    budget: int | None, steps: list[tuple[int, int, torch.dtype]]
) -> None:
    expected: list[Tensor] = []
    with Activations(budget) as activations:
        for number, (index, size, dtype) in enumerate(steps):
            tensor = (torch.arange(size) + number).to(dtype)
            if 0 <= index < len(expected):
                activations[index] = expected[index] = tensor
            else:
                activations.append(tensor)
                expected.append(tensor)
            assert len(activations) == len(expected)
            assert budget is None or in_memory(activations) <= budget
            for read in (list(activations), [activations[at] for at in range(len(expected))]):
                assert all(torch.equal(*pair) for pair in zip(read, expected, strict=True))
                assert [tensor.dtype for tensor in read] == [tensor.dtype for tensor in expected]
        assert budget is not None or len(activations._kept) == len(expected)
