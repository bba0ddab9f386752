"""Where a walk gets its decoder blocks from: a model in memory, or files of which one block is read at a time."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from shears.blockwise.skeleton import Skeleton
from shears.checkpoints.tensor_files import TensorWriter
from shears.models.blocks import decoder_blocks


class BlockSource(ABC):
    """A model and its decoder blocks; only an open block's parameters need to be in memory.

    `prefix` is the name of the list of blocks, `resident` says that all of them always are in memory.
    """

    model: PreTrainedModel
    prefix: str
    device: torch.device
    resident: bool

    @abstractmethod
    def opened(self, index: int) -> AbstractContextManager[nn.Module]:
        """Hold a block in memory for a while."""

    @abstractmethod
    def with_head(self) -> AbstractContextManager[None]:
        """Hold the head, which turns hidden states into logits, in memory for a while."""

    @abstractmethod
    def keep(self, index: int, parameters: Collection[str]) -> None:
        """Keep what the named parameters of the open block have become."""


class WholeModel(BlockSource):
    """All blocks in memory, changed in place."""

    resident = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.prefix, self._blocks = decoder_blocks(model)

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        """Yield the block."""
        yield self._blocks[index]

    def with_head(self) -> AbstractContextManager[None]:
        """Nothing to do: it is in memory."""
        return nullcontext()

    def keep(self, index: int, parameters: Collection[str]) -> None:
        """Nothing to do: the model is what is kept."""


class StreamedModel(BlockSource):
    """One block in memory at a time, read from files and written to others.

    The embeddings and what else is beside the blocks stay loaded; a head of its own is, where it is needed.
    """

    resident = False

    def __init__(self, skeleton: Skeleton, writer: TensorWriter) -> None:
        self.model, self.device, self.prefix = skeleton.model, skeleton.device, skeleton.blocks
        self._skeleton, self._writer = skeleton, writer
        skeleton.load_rest()
        self._head = _own_head(self.model)
        if self._head is not None:
            skeleton.evict(self._head)

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        """Yield the block with its parameters as the files have them."""
        name = f"{self.prefix}.{index}"
        self._skeleton.load(name)
        try:
            yield self.model.get_submodule(name)
        finally:
            self._skeleton.evict(name)

    @contextmanager
    def with_head(self) -> Iterator[None]:
        """Read the head from the files for a while; one that is tied to the embeddings is there."""
        if self._head is None:
            yield
            return
        self._skeleton.load(self._head)
        try:
            yield
        finally:
            self._skeleton.evict(self._head)

    def keep(self, index: int, parameters: Collection[str]) -> None:
        """Write the parameters to the output files."""
        if parameters:
            self._skeleton.store(f"{self.prefix}.{index}", self._writer, parameters)


def _own_head(model: PreTrainedModel) -> str | None:
    """Return the name of the output embeddings, or None where they are the input embeddings."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embeddings.weight:
        return None
    return next((name for name, module in model.named_modules() if module is head), None)
