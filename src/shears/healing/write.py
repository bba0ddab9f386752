"""Write a healed model: the files of the sparse one with its trained linears, every zero in its place."""

from pathlib import Path

import torch
from torch import nn

from shears.checkpoints.tensor_files import TensorFiles
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.export.target import in_format
from shears.healing.linears import trained_linears
from shears.models.blockwise.matrices import block_matrices
from shears.models.blockwise.sources import BlockSource
from shears.models.load import copy_configs, save_tokenizer
from shears.models.ref import ModelRef
from shears.sparsity.plan import linear_name
from shears.sparsity.rewrite import FormatOf, LinearSparsity, check_saved, rewrite_model


def write_healed(sparse: ModelRef, model: nn.Module, work: Path) -> dict[str, LinearSparsity]:
    """Write the sparse model with what was trained in `model` to `work`; return the zeros of its linears.

    InputError where a weight is not finite in the files' number format, and where the files have their zeros in
    other places than the sparse model.
    """
    for file in work.glob("*.safetensors*"):
        file.unlink()  # of an interruption while writing
    linears = rewrite_model(sparse, work, "cpu", "auto", lambda source, form: _change(source, form, model))
    if not (work / "config.json").is_file():
        copy_configs(sparse.folder, work)
    save_tokenizer(sparse, work)
    check_saved(work, linears)
    _check_zeros(sparse.folder, work)
    return linears


@torch.no_grad()
def _change(source: BlockSource, format_of: FormatOf, model: nn.Module) -> dict[str, LinearSparsity]:
    trained = trained_linears(model)
    linears: dict[str, LinearSparsity] = {}
    for index, _ in enumerate(source.model.get_submodule(source.prefix).children()):
        with source.opened(index) as block:
            matrices = block_matrices(f"{source.prefix}.{index}", block)
            for matrix in matrices:
                view = matrix.view(source.model)
                if matrix.name in trained:
                    weight = trained[matrix.name].healed(view.float())
                    _refuse_not_finite(matrix.name, weight, format_of(matrix.parameter))
                    view.copy_(in_format(weight, view != 0, format_of(matrix.parameter)))
                name = linear_name(matrix)
                before = linears.get(name, LinearSparsity((0, matrix.shape[1]), 0))
                shape = (before.shape[0] + matrix.shape[0], matrix.shape[1])
                linears[name] = LinearSparsity(shape, before.zeros + count_zeros(view))
            source.keep(index, [matrix.parameter for matrix in matrices if matrix.name in trained])
    return linears


def _refuse_not_finite(name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    if not torch.isfinite(weight.to(dtype)).all():
        raise InputError(f"healed weights must be finite in {dtype}, {name} is not; lower learning_rate")


def _check_zeros(before: Path, after: Path) -> None:
    """Raise InputError where a matrix in the files of both folders has its zeros in other places."""
    files = TensorFiles(before)
    written = TensorFiles(after)
    for name in sorted({*files.names} & {*written.names}):
        if len(files.shape(name)) < 2:
            continue
        zeros, found = (each.load(name) == 0 for each in (files, written))
        if not torch.equal(zeros, found):
            raise InputError(f"{name} must have its zeros where {before} has them, it has others; make it again")
