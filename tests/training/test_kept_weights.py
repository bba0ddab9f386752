"""Linears whose zeros stay zero: their outputs and gradients are autograd's own at the weights that are kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.models.blocks import weight_oi
from shears.quantization.grid import quantize
from shears.training.kept_weights import kept_weights, train_kept, trainable
from tests.tiny import tiny_model

INPUTS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


class One(nn.Module):
    """One linear of 8 inputs and 6 outputs, half of whose weights are zero."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear: Any = Conv1D(6, 8) if transposed else nn.Linear(8, 6)
        weight = torch.randn(self.linear.weight.shape, generator=generator)
        self.linear.weight.data = weight * (torch.rand(weight.shape, generator=generator) < 0.5)
        self.linear.bias.data = torch.randn(6, generator=generator)


def expected(one: One, change: Tensor | float = 0.0) -> Tensor:
    return nn.functional.linear(INPUTS, weight_oi(one.linear).detach() + change, one.linear.bias.detach())


@pytest.mark.parametrize("transposed", [False, True])
def test_kept_weights_get_the_gradient_of_the_dense_weight(transposed: bool) -> None:
    one, plain = One(transposed), One(transposed)
    train_kept(one, ["linear"], None)
    inputs, same = INPUTS.clone().requires_grad_(), INPUTS.clone().requires_grad_()
    for model, x in ((one, inputs), (plain, same)):
        model.linear(x).square().sum().backward()
    kept = plain.linear.weight != 0
    assert [name for name, each in one.named_parameters() if each.requires_grad] == ["linear.values"]
    torch.testing.assert_close(one.linear.values.grad, plain.linear.weight.grad[kept])
    torch.testing.assert_close(inputs.grad, same.grad)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_see_the_weights_of_a_package_and_gradients_pass_its_rounding(transposed: bool) -> None:
    one, packed = One(transposed), One(transposed)
    on_grid = quantize(weight_oi(packed.linear).detach(), "int4").dense()
    weight_oi(packed.linear).data.copy_(on_grid)
    kept = one.linear.weight != 0
    train_kept(one, ["linear"], None, "int4")
    for model in (one, packed):
        model.linear(INPUTS).square().sum().backward()
    torch.testing.assert_close(one.linear(INPUTS), expected(packed))
    torch.testing.assert_close(one.linear.values.grad, packed.linear.weight.grad[kept])
    with torch.no_grad():
        one.linear.values *= 3
    one.linear.refresh()
    torch.testing.assert_close(weight_oi(one.linear), 3 * on_grid, rtol=1e-3, atol=0)  # scales are fp16 numbers


@pytest.mark.parametrize(("name", "count"), [("llama", 14), ("gpt2", 8), ("phi3", 8)])
def test_all_linears_of_the_blocks_are_trained_and_nothing_else(name: str, count: int) -> None:
    model = tiny_model(name)
    names = trainable(model)
    assert len(names) == count
    train_kept(model, names, None)
    assert list(kept_weights(model)) == list(names)
    trained = {key for key, each in model.named_parameters() if each.requires_grad}
    assert trained == {f"{key}.values" for key in names}
