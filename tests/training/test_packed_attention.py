"""Attention by example: the numbers of torch's attention under the mask of packed rows."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shears.data.examples import Tokenized
from shears.training.batches import pack
from shears.training.losses import packed_losses
from shears.training.packed_attention import NAME, attend_by_example, causal_segments, packed_attention_forward
from tests.tiny import tiny_model

HEADS = 6
GROUPS = 2
FEATURES = 8
ENDS = ((0, 5, 12), (0, 1, 9, 12))  # of the examples of two rows


def packed_mask() -> Tensor:
    """Two rows of 12 tokens: two examples, three examples."""
    examples = torch.tensor([[sum(token >= end for end in ends) for token in range(12)] for ends in ENDS])
    tokens = torch.arange(12)
    return ((examples[:, :, None] == examples[:, None]) & (tokens[:, None] >= tokens))[:, None]


def drawn(dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, all of them differentiated, and a weight of every output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 12, FEATURES) for heads in (HEADS, GROUPS, GROUPS)] + [(2, 12, HEADS, FEATURES)]
    tensors = [torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes]
    return [each.requires_grad_(index < 3) for index, each in enumerate(tensors)]


def results(dtype: torch.dtype, *, by_example: bool) -> list[Tensor]:
    """The outputs and the gradients of queries, keys and values, in float64."""
    query, key, value, weight = drawn(dtype)
    if by_example:
        output, _ = packed_attention_forward(torch.nn.Module(), query, key, value, packed_mask())
    else:
        keys, values = (each.repeat_interleave(HEADS // GROUPS, 1) for each in (key, value))
        output = scaled_dot_product_attention(query, keys, values, attn_mask=packed_mask()).transpose(1, 2)
    gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
    return [each.detach().double() for each in (output, *gradients)]


def test_segments_are_the_examples_of_every_row() -> None:
    assert causal_segments(packed_mask()) == [
        number for row, ends in enumerate(ENDS) for begin, end in pairwise(ends) for number in (row, begin, end)
    ]


@pytest.mark.parametrize(
    "mask",
    [
        packed_mask().float(),
        packed_mask().expand(2, 3, 12, 12),
        packed_mask() & (torch.arange(12)[:, None] - torch.arange(12) < 4),  # a sliding window
        packed_mask() | packed_mask().transpose(2, 3),  # not causal
        torch.zeros(2, 1, 12, 12, dtype=torch.bool),
        packed_mask()[:, :, 6:],
    ],
)
def test_other_masks_have_no_segments(mask: Tensor) -> None:
    assert causal_segments(mask) is None


def test_outputs_and_gradients_are_those_of_torchs_attention() -> None:
    for actual, expected in zip(
        results(torch.float32, by_example=True), results(torch.float64, by_example=False), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_bf16_is_as_near_to_float64_as_torchs_attention() -> None:
    exact = results(torch.float64, by_example=False)
    ours = results(torch.bfloat16, by_example=True)
    torchs = results(torch.bfloat16, by_example=False)
    for actual, other, expected in zip(ours, torchs, exact, strict=True):
        assert (actual - expected).norm() < 1.5 * (other - expected).norm()


ROWS = [Tokenized(list(range(3, 3 + length)), list(range(3, 3 + length))) for length in (5, 7, 9, 4, 11)]


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "qwen3", "gpt2", "gpt_neox"])
def test_a_models_losses_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    model = tiny_model(name)
    batch = pack(ROWS, 20, 0)
    expected, _ = packed_losses(model, batch)
    assert attend_by_example(model)
    assert model.config._attn_implementation == NAME

    def listening(mask: Tensor) -> list[int] | None:
        segments = causal_segments(mask)
        calls.append(segments)
        return segments

    monkeypatch.setattr("shears.training.packed_attention.causal_segments", listening)
    actual, _ = packed_losses(model, batch)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == model.config.num_hidden_layers
    assert (None in calls) == (name == "mistral")  # its window is shorter than the longest example


def test_autocast_decides_the_number_format_as_for_torchs_attention() -> None:
    query, key, value, weight = drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = packed_attention_forward(torch.nn.Module(), query, key, value.bfloat16(), packed_mask())
    assert output.dtype == torch.bfloat16
    for actual, expected in zip(
        torch.autograd.grad((output * weight).sum(), (query, key, value)),
        results(torch.bfloat16, by_example=True)[1:],
        strict=True,
    ):
        torch.testing.assert_close(actual.double(), expected)


def test_a_model_with_attention_of_its_own_keeps_it() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert not attend_by_example(model)
    assert model.config._attn_implementation == "eager"
