"""QA-SparsePEFT (SQFT, arXiv 2410.03750): the forward sees masked sums of weight and adapter on the grid of int4.

y = Q x + bias, Q = scale * clamp(round((W + P) / scale), -zero, 15 - zero), P the masked product of sparse_adapter.py:
the weights that a package of int4 values holds (checkpoints/packed/layout.py). A row has a scale and a zero point for
each block of 128 inputs. Gradients pass straight through the rounding, and are 0 where the clamp changes the weight.
The scales are those of W, or learnt as LSQ does (arXiv 1902.08153); the zero points are those of W.

Shapes: O output features, I input features, R ranks, B = ceil(I / 128) blocks, * any leading dimensions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float16, UInt8
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shears.checkpoints.packed.layout import num_stored, packed_bytes
from shears.checkpoints.packed.matrices import is_block_matrix, same_name
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.models.blocks import linears, sharing_a_weight, weight_oi
from shears.models.sparse_adapter import SparseLinear, compute_dtype, make_sparse, masked_product, wide_dtype
from shears.quantization.grid import BLOCK, LARGEST_CODE, quantize_blocks
from shears.records.peft_files import GRIDS

SCALES = ".scales"
ZEROS = ".zeros"
LEARNT = "lora_log_scales"  # PEFT saves and loads what begins with `lora_`, so checkpoints hold it
LSQ_FACTOR = 1 / math.sqrt(BLOCK * LARGEST_CODE)  # of the scales' gradients, so that they do not rule its norm
DENSE_BYTES = 2  # of a weight that is not packed beside int4: bf16


class Grid(NamedTuple):
    """The scales and zero points of a linear."""

    scales: Float16[Tensor, "O B"]
    zeros: UInt8[Tensor, "O B"]

    def to(self, device: torch.device) -> "Grid":
        """Return the grid on another device."""
        return Grid(self.scales.to(device), self.zeros.to(device))


def grids_of(model: nn.Module, folder: Path, given: Mapping[str, Grid] | None = None) -> dict[str, Grid]:
    """Return the grid of each linear that a package of the model in `folder` holds as int4, by the module's name.

    `given` grids replace those of the weights' own ranges. InputError where a matrix of the files is no linear of its
    own in the model (an expert's, or shared by two linears), because the package's rounding would then differ, and for
    weights that int4 cannot hold.
    """
    modules = linears(model)
    files = TensorFiles(folder)
    grids: dict[str, Grid] = {}
    for name in files.names:
        if not is_block_matrix(name, torch.empty(files.shape(name), dtype=files.dtype(name), device="meta")):
            continue
        owners = [module for module in modules if same_name(name.removesuffix(".weight"), module)]
        if len(owners) != 1:
            raise InputError(
                f"quantize_aware needs a linear for each matrix of the files, {name} has {len(owners)} (an expert's?); "
                "train without, and let export round"
            )
        weight = weight_oi(modules[owners[0]]).detach()
        rows, cols = weight.shape
        if packed_bytes(rows, cols, num_stored(weight.cpu() != 0, "int4"), "int4") < DENSE_BYTES * weight.numel():
            grids[owners[0]] = (given or {}).get(owners[0]) or grid_of(weight)
    if (pair := sharing_a_weight(model, grids)) is not None:
        raise InputError(f"quantize_aware needs weights of their own, {pair[0]} shares its with {pair[1]}")
    return grids


def grid_of(weight: Float[Tensor, "O I"]) -> Grid:
    """Return the scales and zero points that a package gives a weight; InputError where int4 cannot hold it."""
    _, scales, zeros = quantize_blocks(weight.cpu().contiguous())
    return Grid(scales, zeros).to(weight.device)


def on_grid(
    weight: Float[Tensor, "O I"], a: Float[Tensor, "R I"], b: Float[Tensor, "O R"], grid: Grid, scaling: float = 1.0
) -> Float[Tensor, "O I"]:
    """Return the nearest numbers of the grid to W + P, as a package holds them: +0.0 where W is zero.

    In float32 or the wider dtype of the arguments. Equal factors of equal shapes give equal bits.
    """
    scales = grid.scales.to(wide_dtype(weight, a))
    return _round_(_steps(weight, a, b, scales, scaling), scales, grid.zeros)


def rounded(weight: Float[Tensor, "O I"], grid: Grid) -> Float[Tensor, "O I"]:
    """Return the nearest numbers of the grid to a weight without an adapter."""
    return on_grid(weight, weight.new_empty(0, weight.shape[1]), weight.new_empty(weight.shape[0], 0), grid)


def _steps(weight: Tensor, a: Tensor, b: Tensor, scales: Tensor, scaling: float = 1.0) -> Tensor:
    """Return (W + P) / scale before rounding; a scale of 0 counts as 1, because its weights become 0 afterwards."""
    steps = masked_product(weight, a, b, scaling).add_(weight)
    for part, scale in _in_blocks([steps], [scales]):
        part.div_(scale.where(scale > 0, 1.0))
    return steps


def _round_(steps: Float[Tensor, "O I"], scales: Float[Tensor, "O B"], zeros: UInt8[Tensor, "O B"]) -> Tensor:
    """Replace steps by the numbers of the grid, in place."""
    for part, scale, zero in _in_blocks([steps], [scales, zeros.to(scales.dtype)]):
        part.round_().clamp_(-zero, LARGEST_CODE - zero).mul_(scale).add_(0.0)  # -0.0 + 0.0 is +0.0
    return steps


def _in_blocks(wholes: Sequence[Tensor], tables: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield views of the weights (O I) in blocks (O, blocks, inputs), and of the tables (O B) as (O, blocks, 1).

    The last block may be narrower than the others, and then comes by itself.
    """
    count, rest = divmod(wholes[0].shape[1], BLOCK)
    full = count * BLOCK
    if count:
        parts = [whole[:, :full].unflatten(1, (count, BLOCK)) for whole in wholes]
        yield parts + [table[:, :count, None] for table in tables]
    if rest:
        yield [whole[:, None, full:] for whole in wholes] + [table[:, count:, None] for table in tables]


class Frozen(NamedTuple):
    """The parts of a linear on a grid that are not trained."""

    weight: Float[Tensor, "O I"]
    bias: Float[Tensor, " O"] | None
    zeros: UInt8[Tensor, "O B"]


class _GridProduct(torch.autograd.Function):
    """y = Q x + bias; `b` is masked by rank and scaled already, `scales` are fp16 numbers in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*B I"],
        frozen: Frozen,
        a: Float[Tensor, "R I"],
        b: Float[Tensor, "O R"],
        scales: Float[Tensor, "O B"],
    ) -> Float[Tensor, "*B O"]:
        weight, bias, zeros = frozen
        ctx.save_for_backward(x, weight, a, b, scales, zeros)
        ctx.dtype = dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = scales.to(wide_dtype(weight, a))
            whole = _round_(_steps(weight, a, b, wide), wide, zeros).to(dtype)
            return nn.functional.linear(x.to(dtype), whole, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*B O"]) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scales, zeros = ctx.saved_tensors
        wants_x, _, *wanted = ctx.needs_input_grad
        dx = da = db = dscales = None
        with torch.autocast(x.device.type, enabled=False):
            rows = gradient.reshape(-1, gradient.shape[-1])
            wide = scales.to(wide_dtype(weight, a))
            steps = _steps(weight, a, b, wide)
            if any(wanted):
                dp = (rows.T @ x.reshape(-1, x.shape[-1]).to(ctx.dtype)).to(steps.dtype).masked_fill_(weight == 0, 0.0)
                dscales = _pass_through_(dp, steps, wide, zeros).to(scales.dtype)
                da = (b.T.to(dp.dtype) @ dp).to(a.dtype)
                db = (dp @ a.T.to(dp.dtype)).to(b.dtype)
                del dp  # before the next tensor of the weight's size
            if wants_x:
                dx = (rows @ _round_(steps, wide, zeros).to(ctx.dtype)).to(x.dtype).view(x.shape)
        return dx, None, da, db, dscales


def _pass_through_(
    gradient: Float[Tensor, "O I"], steps: Float[Tensor, "O I"], scales: Float[Tensor, "O B"], zeros: Tensor
) -> Float[Tensor, "O B"]:
    """Turn the gradient of Q into that of W + P, in place; return that of the scales.

    With u = (W + P) / scale and k the clamped step: dQ/d(W + P) is 1 where round(u) = k, else 0, and dQ/dscale is k - u
    there, else k (LSQ, eq. 3). A scale of 0 stops every gradient.
    """
    of_scales = []
    for part, step, scale, zero in _in_blocks([gradient, steps], [scales, zeros.to(scales.dtype)]):
        nearest = step.round()
        clamped = nearest.clamp(-zero, LARGEST_CODE - zero)
        inside = nearest == clamped
        of_scales.append((part * (clamped - step * inside)).sum(-1))
        part.mul_(inside & (scale > 0))
    return torch.cat(of_scales, 1)


class _LearntScales(torch.autograd.Function):
    """scale * exp(t) rounded to fp16, in float32; the gradient passes straight through the rounding, times LSQ_FACTOR.

    The logarithm keeps scales positive, and makes the learning rate relative to their size.
    """

    @staticmethod
    def forward(ctx: Any, logs: Float[Tensor, "O B"], first: Float16[Tensor, "O B"]) -> Float[Tensor, "O B"]:
        scales = first.float() * logs.float().exp()
        ctx.save_for_backward(scales)
        return scales.half().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "O B"]) -> tuple[Tensor, None]:
        (scales,) = ctx.saved_tensors
        return gradient * scales * LSQ_FACTOR, None


class GridLinear(SparseLinear):
    """A masked LoRA layer whose sum with the base weight is rounded to a grid; made by `make_quantize_aware`."""

    grid_scales: Tensor
    grid_zeros: Tensor

    def put_on(self, grid: Grid, learn_scales: bool) -> None:
        """Use this grid from now on; `learn_scales` adds a trained parameter for its scales."""
        device = self.get_base_layer().weight.device
        self.register_buffer("grid_scales", grid.scales.to(device), persistent=False)
        self.register_buffer("grid_zeros", grid.zeros.to(device), persistent=False)
        if learn_scales:
            logs = torch.zeros(grid.scales.shape, dtype=torch.float32, device=device)
            self.add_module(LEARNT, nn.ParameterDict({self.sparse_adapter: nn.Parameter(logs)}))

    @property
    def _scales(self) -> Float[Tensor, "O B"]:
        """The scales in float32, each an fp16 number."""
        if not self.learns_scales:
            return self.grid_scales.float()
        scales: Tensor = _LearntScales.apply(self.get_submodule(LEARNT)[self.sparse_adapter], self.grid_scales)
        return scales

    @property
    def learns_scales(self) -> bool:
        """Whether the scales are trained."""
        return LEARNT in self._modules

    @property
    def grid(self) -> Grid:
        """The present grid, detached."""
        return Grid(self._scales.detach().half(), self.grid_zeros)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """Return Q x + bias."""
        result: Tensor = _GridProduct.apply(x, Frozen(weight, bias, self.grid_zeros), a, b, self._scales)
        return result

    def whole(self, weight: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, "O I"]:
        """Return Q."""
        return on_grid(weight, a, b, self.grid)

    def more_parts(self) -> list[Tensor]:
        """Return the rank mask and the grid."""
        learnt = [self.get_submodule(LEARNT)[self.sparse_adapter]] if self.learns_scales else []
        return [*super().more_parts(), self.grid_scales, self.grid_zeros, *learnt]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Refuse to merge in place: PEFT could not undo a rounding."""
        raise InputError("weights on a grid are not merged in place; take shears export --format merged or package")

    def make_plain(self) -> None:
        """Become PEFT's own layer again."""
        self._modules.pop(LEARNT, None)
        del self.grid_scales
        del self.grid_zeros
        super().make_plain()


@torch.no_grad()
def make_quantize_aware(
    model: PeftModel, grids: Mapping[str, Grid], *, learn_scales: bool = False, adapter: str = "default"
) -> None:
    """Put every linear of `grids` on its grid, in place: adapted ones with their adapter, the others for good.

    `make_plain` undoes it for the adapted ones. InputError for an adapted linear without a grid, and for what
    `make_sparse` refuses.
    """
    base = model.get_base_model()
    modules = dict(base.named_modules())
    if absent := sorted(grids.keys() - modules.keys()):
        raise InputError(f"every grid must be of a linear of the model, {absent[0]} is not there; name its own base")
    make_sparse(model, adapter)
    for name, module in modules.items():
        if not isinstance(module, SparseLinear):
            continue
        if name not in grids:
            raise InputError(
                f"quantize_aware needs linears that a package holds as int4, {name} is not; leave it out of groups"
            )
        module.__class__ = GridLinear
        module.put_on(grids[name], learn_scales)
    for name, grid in grids.items():
        if not isinstance(modules[name], GridLinear):
            weight = weight_oi(modules[name])
            weight.copy_(rounded(weight, grid.to(weight.device)))


def current_grids(model: PeftModel, first: Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grids a model was put on, with the scales that it has learnt since."""
    modules = dict(model.get_base_model().named_modules())
    now = {name: module.grid for name in first if isinstance(module := modules[name], GridLinear)}
    return {**first, **now}


def is_quantize_aware(model: nn.Module) -> bool:
    """Tell whether `make_quantize_aware` was called on the model."""
    return any(isinstance(module, GridLinear) for module in model.modules())


def write_grids(folder: Path, grids: Mapping[str, Grid]) -> None:
    """Write the grids to GRIDS in a folder; InputError where a scale has become no finite number above fp16's zero."""
    for name, grid in grids.items():
        if not bool(torch.isfinite(grid.scales).all()):
            raise InputError(f"learnt scales must be finite in fp16, {name} has others; lower the learning rate")
    tensors = {f"{name}{SCALES}": grid.scales for name, grid in grids.items()}
    tensors |= {f"{name}{ZEROS}": grid.zeros for name, grid in grids.items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / GRIDS)


def read_grids(folder: Path) -> dict[str, Grid]:
    """Return the grids that `write_grids` wrote into an adapter's folder; InputError where they are missing."""
    if not (folder / GRIDS).is_file():
        raise InputError(f"{folder} must hold {GRIDS}, because its adapter was trained for int4; train it again")
    tensors = load_file(folder / GRIDS)
    names = [name.removesuffix(SCALES) for name in tensors if name.endswith(SCALES)]
    return {name: Grid(tensors[f"{name}{SCALES}"], tensors[f"{name}{ZEROS}"]) for name in names}
