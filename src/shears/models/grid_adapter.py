"""QA-SparsePEFT (SQFT, arXiv 2410.03750): masked LoRA, its sum rounded to the grid of int4 or Q4_0.

y = Q x + bias, Q the weights that a package of int4 values or a GGUF file of Q4_0 holds
(quantization/training.py). The scales are those of W, or learnt; the zero points are those of W.

Shapes: O output features, I input features, R ranks, B blocks of inputs that share a scale.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from peft import PeftModel
from torch import Tensor, nn

from shears.checkpoints.package_file import is_block_matrix, same_name
from shears.checkpoints.packed_layout import is_smaller, num_stored
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.models.blocks import linears, sharing_a_weight, weight_oi
from shears.models.sparse_adapter import SparseLinear, make_sparse
from shears.quantization.grid import Q4_0_BLOCK, Grid
from shears.quantization.training import LearntScales, on_grid

LEARNT = "lora_log_scales"  # PEFT saves and loads what begins with `lora_`, so checkpoints hold it
DENSE_BYTES = 2  # of a weight that is not packed beside int4: bf16


def grids_of(model: nn.Module, folder: Path, values: str = "int4") -> dict[str, Grid]:
    """Return by module the grid of each linear that an int4 package or a q4_0 GGUF file rounds."""
    modules = linears(model)
    files = TensorFiles(folder)
    grids: dict[str, Grid] = {}
    for name in files.names:
        if not is_block_matrix(name, (files.dtype(name), files.shape(name))):
            continue
        owners = [module for module in modules if same_name(name.removesuffix(".weight"), module)]
        if len(owners) != 1:
            raise InputError(
                f"quantize_aware needs one linear for each matrix of the files, {name} has "
                f"{len(owners)}; train without quantize_aware and let export round"
            )
        weight = weight_oi(modules[owners[0]]).detach()
        rows, cols = weight.shape
        if values == "q4_0":
            is_rounded = cols % Q4_0_BLOCK == 0
        else:
            is_rounded = is_smaller(rows, cols, num_stored(weight.cpu() != 0, "int4"), "int4", DENSE_BYTES)
        if is_rounded:
            grids[owners[0]] = Grid.of(weight, values)
    if (pair := sharing_a_weight(model, grids)) is not None:
        raise InputError(f"quantize_aware needs unshared weights, {pair[0]} has those of {pair[1]}")
    return grids


class GridLinear(SparseLinear):
    """A LoRA layer whose masked sum with the base is rounded to a grid (`make_quantize_aware`)."""

    grid_scales: Tensor
    grid_zeros: Tensor

    def put_on(self, grid: Grid, learn_scales: bool) -> None:
        grid = grid.to(self.get_base_layer().weight.device)
        self.register_buffer("grid_scales", grid.scales, persistent=False)
        self.register_buffer("grid_zeros", grid.zeros, persistent=False)
        if learn_scales:
            logs = torch.zeros_like(grid.scales, dtype=torch.float32)
            self.add_module(LEARNT, nn.ParameterDict({self.sparse_adapter: nn.Parameter(logs)}))

    def grid_tensors(self) -> tuple[Float[Tensor, "O B"], UInt8[Tensor, "O B"]]:
        """Return the present scales in float32, each an fp16 number, and the zero points."""
        if LEARNT not in self._modules:
            return self.grid_scales.float(), self.grid_zeros
        return LearntScales.apply(self.get_submodule(LEARNT)[self.sparse_adapter], self.grid_scales), self.grid_zeros

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Refuse to merge in place: PEFT could not undo a rounding."""
        rule = "an adapter trained with quantize_aware cannot be merged in place"
        raise InputError(f"{rule}; use shears export --format merged or package")


@torch.no_grad()
def make_quantize_aware(
    model: PeftModel, grids: Mapping[str, Grid], *, learn_scales: bool = False, adapter: str = "default"
) -> None:
    """Put the linears on their grids, in place: adapted ones in every forward, others for good."""
    modules = dict(model.get_base_model().named_modules())
    if absent := sorted(grids.keys() - modules.keys()):
        rule = "every weight of the adapter must belong to a linear of the model"
        raise InputError(f"{rule}, {absent[0]} does not; name the adapter's base model")
    make_sparse(model, adapter)
    for name, module in modules.items():
        if isinstance(module, SparseLinear):
            if name not in grids:
                raise InputError(
                    "quantize_aware needs linears that the exported file stores in 4 bits, "
                    f"{name} is none; leave it out of groups"
                )
            module.__class__ = GridLinear
            module.put_on(grids[name], learn_scales)
        elif name in grids:
            weight = weight_oi(module)
            weight.copy_(on_grid(weight, grids[name].to(weight.device)))


def current_grids(model: PeftModel, first: Mapping[str, Grid]) -> dict[str, Grid]:
    """Return the grids a model was put on, with the scales that it has learnt since."""
    grids = dict(first)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, GridLinear):
            scales, zeros = module.grid_tensors()
            grids[name] = Grid(scales.detach().half(), zeros)
    return grids
