"""A linear that trains for int4 computes with the numbers of its grid, and passes gradients straight through."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed_layout import dense, pack
from shears.errors import InputError
from shears.models.blocks import weight_oi
from shears.models.grid_adapter import LEARNT, current_grids, make_quantize_aware
from shears.models.sparse_adapter import masked_sum
from shears.quantization.grid import Grid
from shears.quantization.training import LSQ_FACTOR, on_grid
from tests.checkpoints.masked import num_kept
from tests.models.test_sparse_adapter import Holder, layer_of, mask_ranks
from tests.oracles import quantize_aware

WIDTH, OUTPUTS, RANK, SCALING = 160, 5, 3, 1.5  # a block of 128 inputs and one of 32; five of Q4_0


def one_linear(kind: str = "linear", sparsity: float = 0.5, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A frozen linear with a random adapter that moves weights by some steps, and beyond their grid."""
    generator = torch.Generator().manual_seed(0)
    module = Conv1D(OUTPUTS, WIDTH) if kind == "conv1d" else nn.Linear(WIDTH, OUTPUTS)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    module.weight.data *= torch.rand(module.weight.shape, generator=generator) >= sparsity
    weight_oi(module).data[1, 128:] = 0.0  # a block without weights: its scale is 0
    weight_oi(module).data[2, :128].abs_()  # a grid that begins at zero
    lora = LoraConfig(r=RANK, lora_alpha=SCALING * RANK, target_modules=["linear"], fan_in_fan_out=kind == "conv1d")
    model = get_peft_model(Holder(module).to(dtype), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.6
    return model


def put_on_grid(model: PeftModel, learn_scales: bool = False, grid: Grid | None = None, values: str = "int4") -> Grid:
    grid = grid or Grid.of(weight_oi(layer_of(model).base_layer).detach().float(), values)
    make_quantize_aware(model, {"linear": grid}, learn_scales=learn_scales)
    return grid


@pytest.mark.parametrize(
    ("kind", "sparsity", "mask", "shape", "values"),
    [
        ("linear", 0.5, None, (WIDTH,), "int4"),
        ("linear", 0.0, [1, 1, 0], (4, WIDTH), "int4"),
        ("conv1d", 0.5, [1, 0, 0], (2, 3, WIDTH), "int4"),
        ("linear", 0.5, None, (4, WIDTH), "q4_0"),
        ("conv1d", 0.0, [1, 1, 0], (WIDTH,), "q4_0"),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_literal_restatement(
    kind: str, sparsity: float, mask: list[int] | None, shape: tuple[int, ...], values: str
) -> None:
    model = one_linear(kind, sparsity).double()
    grid = put_on_grid(model, learn_scales=True, values=values)
    if mask is not None:
        mask_ranks(model, torch.tensor(mask).float())
    layer, generator = layer_of(model), torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = model(x)
    cotangent = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    outputs.backward(cotangent)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    factors = SCALING * (torch.ones(RANK) if mask is None else torch.tensor(mask).float())
    block = 32 if values == "q4_0" else 128
    expected = quantize_aware.linear((x, weight_oi(layer.base_layer), a, b), grid, factors, cotangent, block)
    torch.testing.assert_close(outputs.detach(), expected.outputs + layer.base_layer.bias)
    for actual, wanted in ((x.grad, expected.x), (a.grad, expected.a), (b.grad, expected.b)):
        torch.testing.assert_close(actual, wanted)
    learnt = getattr(layer, LEARNT)["default"].grad
    of_logs = expected.scales * grid.scales.double() * LSQ_FACTOR  # dL/dlog s = s dL/ds
    torch.testing.assert_close(learnt.double(), of_logs, rtol=1e-4, atol=1e-5)  # scales are learnt in float32
    unused = factors == 0
    assert (a.grad[unused] == 0).all()
    assert (b.grad[:, unused] == 0).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_package_holds_the_forwards_weights_bit_for_bit(dtype: torch.dtype, sparsity: float) -> None:
    """Even where a model folder of 16 bits lies between: rounding to it stays within half a step."""
    layer = layer_of(one_linear(sparsity=sparsity, dtype=dtype))
    weight = layer.base_layer.weight.detach()
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    grid = Grid.of(weight)
    whole = on_grid(masked_sum(weight, a, b, SCALING), grid)
    assert whole.dtype == torch.float32
    packed = pack(whole.to(dtype), "int4", grid)
    bits = dense(packed).view(torch.int32)
    assert torch.equal(bits, whole.view(torch.int32))  # +0.0 for zeros, never -0.0
    assert bool((whole[weight == 0] == 0).all())
    assert num_kept(packed) == int((whole != 0).sum())


def test_learnt_scales_are_computed_with_as_they_are_stored() -> None:
    model = one_linear()
    first = put_on_grid(model, learn_scales=True)
    layer = layer_of(model)
    logs = getattr(layer, LEARNT)["default"]
    assert torch.equal(layer.grid_tensors()[0], first.scales.float())
    logs.data.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    stored = current_grids(model, {"linear": first})["linear"]
    assert stored.scales.dtype == torch.float16
    assert not torch.equal(stored.scales, first.scales)
    torch.testing.assert_close(stored.scales.float(), first.scales.float() * logs.detach().exp(), rtol=1e-3, atol=0)
    fixed = one_linear()
    put_on_grid(fixed, grid=stored)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model(x), fixed(x))


def test_a_linear_without_a_grid_and_a_grid_without_a_linear_are_refused() -> None:
    grid = Grid.of(torch.ones(OUTPUTS, WIDTH))
    with pytest.raises(InputError, match="stores in 4 bits, linear is none; leave it out of groups"):
        make_quantize_aware(one_linear(), {})
    with pytest.raises(
        InputError, match="every weight of the adapter must belong to a linear of the model, other does not"
    ):
        make_quantize_aware(one_linear(), {"linear": grid, "other": grid})
    model = one_linear()
    put_on_grid(model)
    with pytest.raises(InputError, match="cannot be merged in place"):
        model.merge_adapter()
