"""Count the zeros of a saved model in its files, whatever the names there, and compare with what was meant."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from shears.blockwise.matrices import Matrix, block_matrices
from shears.blockwise.sources import Skeleton
from shears.checkpoints.conversion import UnsupportedCheckpoint
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.load import load_model
from shears.sparsity.plan import linear_name
from shears.sparsity.report import LinearSparsity, SparsityReport


def check_saved(folder: Path, report: SparsityReport) -> None:
    """Raise InputError where a linear has another number of zeros in the files of `folder` than the report says."""
    found = _zeros_by_name(folder, report.linears)
    if len(found) < len(report.linears):
        found = _zeros_by_block(folder)  # experts, and architectures that name their weights otherwise on disk
    for name, linear in report.linears.items():
        if found.get(name) != linear.zeros:
            raise InputError(f"{name} must have {linear.zeros} zeros in {folder}, got {found.get(name)}; make it again")


def _zeros_by_name(folder: Path, linears: Mapping[str, LinearSparsity]) -> dict[str, int]:
    files = TensorFiles(folder)
    wanted = {name: f"{name}.weight" for name in linears if f"{name}.weight" in set(files.names)}
    return {name: _zeros(files.load(tensor)) for name, tensor in wanted.items()}


def _zeros_by_block(folder: Path) -> dict[str, int]:
    """Count in the model that the files make, one block in memory at a time where it can be read so."""
    try:
        skeleton = Skeleton.open(folder)
    except UnsupportedCheckpoint:
        return _counted(load_model(folder, device="cpu"))
    found: dict[str, int] = {}
    for index, block in enumerate(skeleton.model.get_submodule(skeleton.blocks).children()):
        name = f"{skeleton.blocks}.{index}"
        skeleton.load(name)
        found |= _count(skeleton.model, block_matrices(name, block))
        skeleton.evict(name)
    return found


def _counted(model: nn.Module) -> dict[str, int]:
    prefix, blocks = decoder_blocks(model)
    names = [(f"{prefix}.{index}", block) for index, block in enumerate(blocks)]
    return _count(model, [matrix for name, block in names for matrix in block_matrices(name, block)])


def _count(model: nn.Module, matrices: list[Matrix]) -> dict[str, int]:
    found: dict[str, int] = {}
    for matrix in matrices:
        name = linear_name(matrix)
        found[name] = found.get(name, 0) + _zeros(matrix.view(model))
    return found


def _zeros(tensor: torch.Tensor) -> int:
    return int((tensor == 0).sum())
