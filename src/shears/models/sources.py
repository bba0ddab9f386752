"""Sources of decoder blocks: a model in memory, or files read and written block by block."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.checkpoints import conversion
from shears.checkpoints.conversion import ConversionGroup
from shears.checkpoints.tensor_files import TensorFiles, TensorWriter, in_dtype_with_zeros
from shears.checkpoints.without_code import LOADING_ERRORS, UnsupportedCheckpoint, read_config
from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks


class Skeleton:
    """A causal language model, in evaluation mode, of which only the loaded parts hold memory.

    `files` are its tensors, `dtype` is that of loaded weights, `blocks` the name of the list of
    decoder blocks. Buffers that no file holds are in memory from the beginning. A loaded parameter
    is a new object every time: keep no reference to one across `load` or `evict`.
    """

    def __init__(self, model: PreTrainedModel, files: TensorFiles, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model
        self.files = files
        self.dtype = dtype
        self.device = device
        self.blocks = decoder_blocks(model)[0]
        try:
            self._conversion = conversion.Conversion(model, files, dtype)
            for name in (name for tie in model.all_tied_weights_keys.items() for name in tie):
                if name.startswith(f"{self.blocks}."):
                    raise UnsupportedCheckpoint(f"blocks read one by one must share no weights, {name} is shared")
            for group in self._groups(self.blocks):
                self._conversion.refuse_one_way(group)
            conversion.make_buffers(model, device)
        except InputError:
            raise
        except LOADING_ERRORS as error:
            raise UnsupportedCheckpoint(
                f"a model read part by part must be built without memory, {files.folder} is not: {first_line(error)}"
            ) from error

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> "Skeleton":
        """Return the model of a folder, without weights, to be loaded as `dtype` (None: its own).

        InputError if weights are missing or files are torn; its subclass UnsupportedCheckpoint for
        adapters, quantized checkpoints, remote code, weights that blocks share, and conversions
        that cannot be undone.
        """
        folder = Path(folder)
        config = read_config(folder)
        files = TensorFiles(folder)
        stored = next((files.dtype(name) for name in files.names if files.dtype(name).is_floating_point), torch.float32)
        chosen = dtype or config.dtype or config.get_text_config().dtype or stored
        return cls(conversion.empty_model(folder, config, chosen), files, chosen, torch.device(device))

    def disk_names(self, parameter: str) -> list[str]:
        """Return the tensors in the files that a parameter is made from; none for a tied one."""
        groups = self._conversion.groups
        return [name for group in groups if parameter in group.parameters for name in group.tensors]

    def load(self, prefix: str) -> None:
        """Read the parameters and persistent buffers below a name such as `model.layers.3`."""
        self._conversion.load(self._groups(prefix), self.device)

    def load_rest(self) -> None:
        """Read all that is not below the decoder blocks, and tie tied weights."""
        inside = self._groups(self.blocks)
        rest = [group for group in self._conversion.groups if group not in inside]
        self._conversion.load(rest, self.device)
        self._conversion.tie()

    def _groups(self, prefix: str) -> list[ConversionGroup]:
        groups = self._conversion.groups
        return [group for group in groups if any(name.startswith(f"{prefix}.") for name in group.parameters)]

    def evict(self, prefix: str) -> None:
        """Free the parameters and persistent buffers below a module's name."""
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device=conversion.META)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    setattr(module, name, torch.empty_like(buffer, device=conversion.META))

    def store(self, names: Collection[str], writer: TensorWriter) -> None:
        """Put loaded parameters, and those made from the same tensors, into the writer."""
        for name, tensor in self.stored(names):
            writer.put(name, in_dtype_with_zeros(name, tensor, writer.dtype(name)))

    def stored(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of loaded parameters, given by full name, as the files hold them.

        Parameters that are made from the same tensors are converted with them.
        """
        for group in self._conversion.groups:
            if not set(names).isdisjoint(group.parameters):
                yield from self._conversion.as_stored(group).items()


class BlockSource(ABC):
    """A model and its decoder blocks, of which only an open one must be in memory.

    `prefix` is the name of the list of blocks; `resident` says whether all stay in memory.
    """

    model: PreTrainedModel
    prefix: str
    device: torch.device
    resident: bool

    @abstractmethod
    def opened(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which a block is in memory."""

    def with_head(self) -> AbstractContextManager[None]:
        """Return a context in which the output embeddings (the head) are in memory."""
        return nullcontext()

    def keep(self, index: int, parameters: Collection[str]) -> None:  # noqa: B027  # in memory it holds itself
        """Save the named parameters of the open block, as they are now."""

    def kept(self) -> list[str]:
        """Return the names of all tensors that `keep` wrote to files, and flush these; none in memory."""
        return []

    def dtype_of(self, parameter: str) -> torch.dtype:
        """Return the number format in which a parameter is written."""
        return self.model.get_parameter(parameter).dtype


class WholeModel(BlockSource):
    """All blocks in memory, changed in place."""

    resident = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.prefix, self._blocks = decoder_blocks(model)

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        """Yield the block."""
        yield self._blocks[index]


class StreamedModel(BlockSource):
    """One block in memory at a time, read from files and, with a writer, written to others.

    All beside the blocks stays in memory, except a head of its own, which `with_head` loads.
    """

    resident = False

    def __init__(self, skeleton: Skeleton, writer: TensorWriter | None = None) -> None:
        self.model = skeleton.model
        self.device = skeleton.device
        self.prefix = skeleton.blocks
        self._skeleton = skeleton
        self._writer = writer
        skeleton.load_rest()
        head = self.model.get_output_embeddings()
        modules = {module: name for name, module in self.model.named_modules()}
        is_tied = head is None or head.weight is self.model.get_input_embeddings().weight
        self._head = None if is_tied else modules.get(head)
        if self._head is not None:
            skeleton.evict(self._head)

    def opened(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context that yields the block with its parameters as the files have them."""
        return self._loaded(f"{self.prefix}.{index}")

    @contextmanager
    def with_head(self) -> Iterator[None]:
        """Load the head from the files and evict it afterwards, unless it is tied."""
        with nullcontext() if self._head is None else self._loaded(self._head):
            yield

    @contextmanager
    def _loaded(self, name: str) -> Iterator[nn.Module]:
        self._skeleton.load(name)
        try:
            yield self.model.get_submodule(name)
        finally:
            self._skeleton.evict(name)

    def keep(self, index: int, parameters: Collection[str]) -> None:
        """Write the named parameters to the output files."""
        if parameters:
            assert self._writer is not None
            self._skeleton.store(parameters, self._writer)

    def kept(self) -> list[str]:
        """Flush the output files; return the names of the tensors in them."""
        assert self._writer is not None
        self._writer.flush()
        return sorted(self._writer.written)

    def dtype_of(self, parameter: str) -> torch.dtype:
        """Return the number format of a parameter's tensor in the output files."""
        assert self._writer is not None
        return self._writer.dtype(self._skeleton.disk_names(parameter)[0])
