"""Write a changed copy of a model, block by block from its files or, where that is not possible, from memory."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from shears.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.blockwise.walk import IrregularBlocks
from shears.checkpoints.conversion import UnsupportedCheckpoint
from shears.checkpoints.tensor_files import TensorWriter
from shears.models.devices import DTYPES, pick_device
from shears.models.load import load_model
from shears.models.ref import ModelRef

logger = logging.getLogger(__name__)
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
