"""A masked adapter computes (W + P) x with exact gradients, and keeps nothing of the weight's size for the backward."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.errors import InputError
from shears.models.blocks import weight_oi
from shears.models.sparse_adapter import make_sparse
from tests.oracles import sparse_peft


class Holder(nn.Module):
    """A model of one linear."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def one_linear(
    kind: str = "linear", bias: bool = True, dtype: torch.dtype = torch.float32, rank: int = 4, **config: Any
) -> PeftModel:
    """A frozen half-sparse linear from 12 to 9 features with a random adapter, scaling 1.5."""
    generator = torch.Generator().manual_seed(0)
    linear = Conv1D(9, 12) if kind == "conv1d" else nn.Linear(12, 9, bias=bias)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    linear.weight.data *= torch.rand(linear.weight.shape, generator=generator) < 0.5
    lora = LoraConfig(
        r=rank, lora_alpha=1.5 * rank, target_modules=["linear"], fan_in_fan_out=kind == "conv1d", **config
    )
    model = get_peft_model(Holder(linear).to(dtype), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def layer_of(model: PeftModel) -> Any:
    return model.get_base_model().linear


def mask_ranks(model: PeftModel, mask: Tensor) -> None:
    layer_of(model).lora_A["default"].register_buffer("rank_mask", mask, persistent=False)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)], ids=str)
@pytest.mark.parametrize("mask", [None, [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_outputs_and_gradients_are_those_of_the_literal_restatement(
    kind: str, mask: list[int] | None, shape: tuple[int, ...]
) -> None:
    model = one_linear(kind).double()
    make_sparse(model)
    if mask is not None:
        mask_ranks(model, torch.tensor(mask).float())
    layer, generator = layer_of(model), torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = model(x)
    cotangent = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    outputs.backward(cotangent)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    tensors = (x, weight_oi(layer.base_layer), a, b)
    ones = torch.ones(4) if mask is None else torch.tensor(mask)
    expected = sparse_peft.linear(tensors, ones, 1.5, cotangent)
    torch.testing.assert_close(outputs.detach(), expected.outputs + layer.base_layer.bias)
    for actual, wanted in ((x.grad, expected.x), (a.grad, expected.a), (b.grad, expected.b)):
        torch.testing.assert_close(actual, wanted)
    assert layer.base_layer.weight.grad is None
    unused = ones == 0
    assert (a.grad[unused] == 0).all()
    assert (b.grad[:, unused] == 0).all()


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_decides_the_dtype_of_the_product_and_of_nothing_else(
    base: torch.dtype, input_dtype: torch.dtype
) -> None:
    model = one_linear(dtype=base)
    make_sparse(model)
    layer, generator = layer_of(model), torch.Generator().manual_seed(2)
    x = torch.randn(2, 7, 12, generator=generator).to(input_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
        plain = nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias)
    assert outputs.dtype == plain.dtype == torch.bfloat16
    outputs.backward(torch.ones_like(outputs))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = sparse_peft.linear((x, layer.base_layer.weight, a, b), torch.ones(4), 1.5, torch.ones_like(outputs))
    assert x.grad is not None
    assert (x.grad.dtype, a.grad.dtype, b.grad.dtype) == (input_dtype, torch.float32, torch.float32)
    for actual, wanted in ((x.grad, expected.x), (a.grad, expected.a), (b.grad, expected.b)):
        assert (actual.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_no_tensor_of_the_weights_size_is_kept_for_the_backward() -> None:
    model = one_linear()
    make_sparse(model)
    known = {parameter.data_ptr() for parameter in model.parameters()}
    x = torch.randn(3, 12, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    own = [tensor for tensor in saved if tensor.data_ptr() not in known and tensor.data_ptr() != x.data_ptr()]
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in saved)
    assert sum(tensor.numel() for tensor in own) <= 9 * 4 + 4  # B, masked and scaled; the weight has 9 * 12


def test_disabled_adapters_leave_the_base_and_other_adapters_are_not_masked() -> None:
    peft_model = one_linear()
    base = peft_model.get_base_model().linear.base_layer
    x = torch.randn(3, 12)
    make_sparse(peft_model)
    with peft_model.disable_adapter():
        assert torch.equal(peft_model(x), base(x))
    peft_model.add_adapter("other", LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False))
    peft_model.set_adapter("other")
    layer = layer_of(peft_model)
    delta = layer.lora_B["other"].weight @ layer.lora_A["other"].weight * layer.scaling["other"]
    torch.testing.assert_close(peft_model(x), base(x) + x @ delta.T)
    peft_model.base_model.set_adapter(["default", "other"])
    with pytest.raises(InputError, match="must be the only active one, got default, other; activate one"):
        peft_model(x)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_merging_keeps_every_zero_where_stock_merging_loses_them(kind: str) -> None:
    model, x = one_linear(kind), torch.randn(3, 12)
    stock = copy.deepcopy(model)
    mask_ranks(model, torch.tensor([1.0, 1.0, 0.0, 1.0]))  # which stock merging does not know of either
    make_sparse(model)
    zeros, expected = layer_of(model).base_layer.weight.data == 0, model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    ours = layer_of(model).base_layer.weight.data.clone()
    assert torch.equal(ours == 0, zeros)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), expected)
    stock.merge_adapter()
    theirs = layer_of(stock).base_layer.weight.data
    assert (theirs[zeros] != 0).all()


def test_layers_that_cannot_be_masked_are_refused() -> None:
    model = one_linear()
    make_sparse(model)
    with pytest.raises(InputError, match="that is not sparse already"):
        make_sparse(model)
    integers = one_linear()
    layer_of(integers).base_layer.weight = nn.Parameter(torch.ones(9, 12, dtype=torch.uint8), requires_grad=False)
    for odd in (integers, one_linear(lora_dropout=0.1), one_linear(use_dora=True)):
        with pytest.raises(
            InputError, match="plain LoRA with dropout 0 on linears of floating-point weights, .*linear"
        ):
            make_sparse(odd)
