"""Write a changed copy of a model, block by block, and what is said of the zeros of its linears."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.checkpoints.tensor_files import TensorWriter, weights_bytes
from shears.checkpoints.without_code import UnsupportedCheckpoint
from shears.models.blocks import Matrix
from shears.models.devices import DTYPES, pick_device
from shears.models.load import copy_configs, load_model
from shears.models.ref import ModelRef
from shears.models.sources import BlockSource, StreamedModel
from shears.records.artifacts import read_object
from shears.records.folders import refuse_full_disk

logger = logging.getLogger(__name__)


def in_format(values: Float[Tensor, "*B I"], kept: Bool[Tensor, "*B I"], dtype: torch.dtype) -> Float[Tensor, "*B I"]:
    """Return the values rounded to `dtype`, zero exactly where not `kept`.

    A kept value that rounds to zero becomes the smallest normal number with its sign, because zero
    means pruned.
    """
    rounded = values.to(dtype).masked_fill_(~kept, 0.0)
    smallest = torch.full_like(rounded, torch.finfo(dtype).tiny).copysign_(values.to(dtype))
    return torch.where(kept & (rounded == 0), smallest, rounded)


@contextmanager
def rewriting(
    model: ModelRef, work: Path, device: str, dtype: str, written: Collection[str] = ()
) -> Iterator[BlockSource]:
    """Yield a model's blocks; what is changed and kept is in the model folder `work` afterwards."""
    if not written:
        refuse_full_disk(work, weights_bytes(model.folder, DTYPES.get(dtype)))
    try:
        source = StreamedModel(model.folder, torch.float32, pick_device(device))
    except UnsupportedCheckpoint as error:
        logger.warning("loading the whole model into memory, because %s", error)
        source = None
    if source is None:
        network = load_model(model, dtype, device, to_save=True)
        yield BlockSource(network)
        network.save_pretrained(work)
        return
    source.writer = TensorWriter(source.files, work, DTYPES.get(dtype), written)
    yield source
    source.writer.finish()
    config = read_object(model.folder / "config.json")
    if dtype in DTYPES:
        config.pop("torch_dtype", None)
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    copy_configs(model.folder, work, config)


class LinearSparsity(NamedTuple):
    """Zeros of a linear; `shape` is (outputs, inputs), in a stack with all experts' outputs."""

    shape: tuple[int, int]
    zeros: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    def as_record(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "zeros": self.zeros, "sparsity": self.zeros / self.size}


def add_zeros(linears: dict[str, LinearSparsity], matrix: Matrix, zeros: int) -> None:
    outputs, inputs = matrix.shape
    (before, _), known = linears.get(matrix.linear, LinearSparsity((0, inputs), 0))
    linears[matrix.linear] = LinearSparsity((before + outputs, inputs), known + zeros)


def overall_sparsity(linears: Mapping[str, LinearSparsity]) -> float:
    return sum(linear.zeros for linear in linears.values()) / sum(linear.size for linear in linears.values())
