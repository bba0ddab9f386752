"""Write a changed copy of a model, block by block from its files or, where that is not possible, from memory."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from shears.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.blockwise.walk import by_block_or_whole
from shears.checkpoints.tensor_files import TensorWriter
from shears.models.devices import DTYPES, pick_device
from shears.models.load import load_model
from shears.models.ref import ModelRef

Result = TypeVar("Result")
FormatOf = Callable[[str], torch.dtype]  # the number format in which a parameter is written


def rewrite_model(
    model: ModelRef, work: Path, device: str, dtype: str, change: Callable[[BlockSource, FormatOf], Result]
) -> Result:
    """Let `change` change the blocks of a model, and write the model to `work`; return what `change` returns.

    The configuration is only written where the model is written from memory.
    """

    def by_block() -> Result:
        skeleton = Skeleton.open(model.folder, torch.float32, pick_device(device))
        writer = TensorWriter(skeleton.files, work, DTYPES.get(dtype))
        source = StreamedModel(skeleton, writer)
        result = change(source, lambda name: writer.dtype(skeleton.disk_names(name)[0]))
        writer.finish()
        return result

    def whole() -> Result:
        network = load_model(model, dtype, device, to_save=True)
        result = change(WholeModel(network), lambda name: network.get_parameter(name).dtype)
        network.save_pretrained(work)
        return result

    return by_block_or_whole(work, by_block, whole)
