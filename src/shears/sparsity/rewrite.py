"""Write a changed copy of a model; count the zeros of linears, and again in the files."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.checkpoints.configuration import UnsupportedCheckpoint
from shears.checkpoints.tensor_files import TensorFiles, TensorWriter, weights_bytes
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.blockwise.matrices import block_matrices
from shears.models.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.models.blockwise.walk import IrregularBlocks
from shears.models.devices import DTYPES, pick_device
from shears.models.load import load_model
from shears.models.ref import ModelRef
from shears.records.folders import refuse_full_disk
from shears.sparsity.plan import linear_name

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
FormatOf = Callable[[str], torch.dtype]  # the number format in which a parameter is written


def in_format(values: Float[Tensor, "*B I"], kept: Bool[Tensor, "*B I"], dtype: torch.dtype) -> Float[Tensor, "*B I"]:
    """Return the values rounded to `dtype`, zero exactly where not `kept`.

    A kept value that rounds to zero becomes the smallest normal number with its sign, because zero
    means pruned.
    """
    rounded = values.to(dtype).masked_fill_(~kept, 0.0)
    smallest = torch.full_like(rounded, torch.finfo(dtype).tiny).copysign_(values.to(dtype))
    return torch.where(kept & (rounded == 0), smallest, rounded)


def rewrite_model(
    model: ModelRef,
    work: Path,
    device: str,
    dtype: str,
    change: Callable[[BlockSource, FormatOf], Result],
    written: Collection[str] = (),
) -> Result:
    """Let `change` change the blocks of a model, write the model to `work`, return its result.

    The configuration is only written if the model is written from memory. `written` are the tensors
    that an interrupted call had put into the files of `work`. InputError, before any work, if the
    disk has too little room.
    """
    if not written:
        refuse_full_disk(work, weights_bytes(model.folder, DTYPES.get(dtype)))

    def by_block() -> Result:
        skeleton = Skeleton.open(model.folder, torch.float32, pick_device(device))
        writer = TensorWriter(skeleton.files, work, DTYPES.get(dtype), written)
        source = StreamedModel(skeleton, writer)
        result = change(source, lambda name: writer.dtype(skeleton.disk_names(name)[0]))
        writer.finish()
        return result

    try:
        return by_block()
    except (UnsupportedCheckpoint, IrregularBlocks) as error:
        logger.warning("%s; the whole model is loaded into memory", error)
    for file in work.glob("*.safetensors*"):
        file.unlink()  # unfinished files of the attempt block by block
    network = load_model(model, dtype, device, to_save=True)
    result = change(WholeModel(network), lambda name: network.get_parameter(name).dtype)
    network.save_pretrained(work)
    return result


@dataclass(frozen=True)
class LinearSparsity:
    """Zeros of a linear; `shape` is (outputs, inputs), in a stack with all experts' outputs."""

    shape: tuple[int, int]
    zeros: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size


def overall_sparsity(linears: Mapping[str, LinearSparsity]) -> float:
    """Return the share of zeros over all linears together."""
    return sum(linear.zeros for linear in linears.values()) / sum(linear.size for linear in linears.values())


def check_saved(folder: Path, linears: Mapping[str, LinearSparsity]) -> None:
    """Raise InputError unless the files of `folder` have the zeros that `linears` states."""
    files = TensorFiles(folder)
    names = set(files.names)
    zeros = {name: count_zeros(files.load(f"{name}.weight")) for name in linears if f"{name}.weight" in names}
    if len(zeros) < len(linears):
        zeros = _zeros_by_block(folder)  # stacks of experts, or other names in the files
    for name, linear in linears.items():
        if zeros.get(name) != linear.zeros:
            raise InputError(f"{name} must have {linear.zeros} zeros in {folder}, got {zeros.get(name)}; make it again")


def _zeros_by_block(folder: Path) -> dict[str, int]:
    """Return the zeros of every linear of the saved model, read block by block if possible."""
    source: BlockSource
    try:
        source = StreamedModel(Skeleton.open(folder))
    except UnsupportedCheckpoint:
        source = WholeModel(load_model(folder, device="cpu"))
    zeros: dict[str, int] = {}
    for index, block in enumerate(decoder_blocks(source.model)[1]):
        with source.opened(index):
            for matrix in block_matrices(f"{source.prefix}.{index}", block):
                name = linear_name(matrix)
                zeros[name] = zeros.get(name, 0) + count_zeros(matrix.view(source.model))
    return zeros
