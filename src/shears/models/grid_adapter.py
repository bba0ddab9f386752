"""QA-SparsePEFT (SQFT, arXiv 2410.03750): masked LoRA whose sum is rounded to the grid of int4.

y = Q x + bias, Q the weights that a package of int4 values holds (quantization/training.py). The
scales are those of W, or learnt; the zero points are those of W.

Shapes: O output features, I input features, R ranks, B = ceil(I / 128) blocks.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from shears.checkpoints.packed.index import is_block_matrix, same_name
from shears.checkpoints.packed.layout import is_smaller, num_stored
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.models.blocks import linears, sharing_a_weight, weight_oi
from shears.models.sparse_adapter import SparseLinear, make_sparse, masked_linear, masked_sum
from shears.quantization.grid import Grid
from shears.quantization.training import LearntScales, on_grid

LEARNT = "lora_log_scales"  # PEFT saves and loads what begins with `lora_`, so checkpoints hold it
DENSE_BYTES = 2  # of a weight that is not packed beside int4: bf16


def grids_of(model: nn.Module, folder: Path) -> dict[str, Grid]:
    """Return the grid of each linear, by module, that a package of the model holds as int4.

    InputError where a matrix of the files is not a linear of its own in the model (an expert's, or
    shared by two linears), because the package's rounding would then differ, and for weights that
    int4 cannot hold.
    """
    modules = linears(model)
    files = TensorFiles(folder)
    grids: dict[str, Grid] = {}
    for name in files.names:
        if not is_block_matrix(name, (files.dtype(name), files.shape(name))):
            continue
        owners = [module for module in modules if same_name(name.removesuffix(".weight"), module)]
        if len(owners) != 1:
            raise InputError(
                f"quantize_aware needs a linear for each matrix of the files, {name} has {len(owners)} (an expert's?); "
                "train without, and let export round"
            )
        weight = weight_oi(modules[owners[0]]).detach()
        rows, cols = weight.shape
        if is_smaller(rows, cols, num_stored(weight.cpu() != 0, "int4"), "int4", DENSE_BYTES):
            grids[owners[0]] = Grid.of(weight)
    if (pair := sharing_a_weight(model, grids)) is not None:
        raise InputError(f"quantize_aware needs weights of their own, {pair[0]} shares its with {pair[1]}")
    return grids


class GridLinear(SparseLinear):
    """A LoRA layer whose masked sum with the base is rounded to a grid (`make_quantize_aware`)."""

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
        scales: Tensor = LearntScales.apply(self.get_submodule(LEARNT)[self.sparse_adapter], self.grid_scales)
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
        return masked_linear(x, weight, bias, a, b, self._scales, self.grid_zeros)

    def whole(self, weight: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, "O I"]:
        """Return Q."""
        return on_grid(masked_sum(weight, a, b), self.grid)

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
    """Put the linears on their grids, in place: adapted ones in every forward, others for good.

    `make_plain` undoes it for the adapted ones. InputError for an adapted linear without a grid,
    and for what `make_sparse` refuses.
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
            weight.copy_(on_grid(weight, grid.to(weight.device)))


def current_grids(model: PeftModel, first: Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grids a model was put on, with the scales that it has learnt since."""
    modules = dict(model.get_base_model().named_modules())
    now = {name: module.grid for name in first if isinstance(module := modules[name], GridLinear)}
    return {**first, **now}


def is_quantize_aware(model: nn.Module) -> bool:
    """Tell whether `make_quantize_aware` was called on the model."""
    return any(isinstance(module, GridLinear) for module in model.modules())
