"""The model that an adapter is merged into, block by block, read from files or held in memory.

Shapes: O output features, I input features of a linear.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.models.blocks import LoraUpdate, sharing_a_weight
from shears.models.blockwise.matrices import Matrix, linear_matrix
from shears.models.blockwise.sources import BlockSource
from shears.sparsity.rewrite import LinearSparsity, in_format


class MergedModel:
    """A model to merge into. `before` and `after` hold the zeros of the linears merged so far.

    InputError where the model lacks a linear that has an update, or where two linears share one
    weight, because the update of one would change the other.
    """

    def __init__(self, source: BlockSource, updates: Mapping[str, LoraUpdate]) -> None:
        self.source = source
        self.updates = updates
        self.by_block = _by_block(source, updates)
        if (pair := sharing_a_weight(source.model, updates)) is not None:
            raise InputError(
                f"a merge must give each linear a weight of its own, {pair[0]} shares its with {pair[1]}; export peft"
            )
        self.before: dict[str, LinearSparsity] = {}
        self.after: dict[str, LinearSparsity] = {}

    def keep(self, index: int) -> None:
        """Write the current weights of an open block's adapted linears to the output."""
        self.source.keep(index, [matrix.parameter for matrix in self.by_block[index]])

    def view(self, matrix: Matrix) -> Float[Tensor, "O I"]:
        """Return the current weight of a linear of the open block."""
        return matrix.view(self.source.model)

    def put(self, matrix: Matrix, values: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"] | None) -> None:
        """Make `values` the weight, in the files' number format, zero exactly where not `kept`.

        `kept` None keeps every weight. InputError where a rounded weight is not finite.
        """
        view = self.view(matrix)
        if matrix.name not in self.before:
            zeros = count_zeros(view if kept is None else kept)
            self.before[matrix.name] = LinearSparsity(matrix.shape, zeros)
        dtype = self.source.dtype_of(matrix.parameter)
        rounded = values.to(dtype) if kept is None else in_format(values, kept, dtype)
        if not torch.isfinite(rounded).all():
            problem = f"exceeds {dtype}; take a base of another dtype"
            if not torch.isfinite(values).all():
                problem = "has NaN or infinity before it is rounded; make its base, or its adapter, again"
            raise InputError(f"merged weights must be finite, {matrix.name} {problem}")
        view.copy_(rounded)
        self.after[matrix.name] = LinearSparsity(matrix.shape, count_zeros(rounded))


def _by_block(source: BlockSource, updates: Mapping[str, LoraUpdate]) -> list[list[Matrix]]:
    """Return the linears that have an update, a list for each block."""
    by_block: list[list[Matrix]] = []
    for index, block in enumerate(source.model.get_submodule(source.prefix).children()):
        named = {f"{source.prefix}.{index}.{name}": module for name, module in block.named_modules()}
        by_block.append([linear_matrix(name, module) for name, module in named.items() if name in updates])
    if absent := sorted(updates.keys() - {matrix.name for matrices in by_block for matrix in matrices}):
        raise InputError(f"every adapted linear must be in a decoder block of the base model, {absent[0]} is not")
    return by_block
