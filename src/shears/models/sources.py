"""Sources of decoder blocks: a model in memory, or files read and written block by block."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.checkpoints import conversion
from shears.checkpoints.conversion import ConversionGroup
from shears.checkpoints.tensor_files import TensorFiles, TensorWriter, in_dtype_with_zeros
from shears.checkpoints.without_code import LOADING_ERRORS, UnsupportedCheckpoint, empty_model, read_config
from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks


class BlockSource:
    """A model and its decoder blocks, all in memory and changed in place; `prefix` is the name of their list."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self.prefix, self._blocks = decoder_blocks(model)

    def opened(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which a block is in memory."""
        return nullcontext(self._blocks[index])

    def keep(self, parameters: Collection[str]) -> None:
        """Save the named parameters of the open block, as they are now."""

    def kept(self) -> list[str]:
        """Return the names of all tensors that `keep` wrote to files, and flush these; none in memory."""
        return []

    def dtype_of(self, parameter: str) -> torch.dtype:
        """Return the number format in which a parameter is written."""
        return self.model.get_parameter(parameter).dtype


class StreamedModel(BlockSource):
    """A model in evaluation mode with one block in memory at a time, which `keep` puts into `writer`.

    All beside the blocks stays in memory. A loaded parameter is a new object every time.
    """

    writer: TensorWriter

    def __init__(self, folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> None:
        """Read a folder's model, to be loaded as `dtype` (None: its own)."""
        config = read_config(folder)
        self.files = TensorFiles(folder)
        formats = map(self.files.dtype, self.files.names)
        stored = next((each for each in formats if each.is_floating_point), torch.float32)
        dtype = dtype or config.dtype or config.get_text_config().dtype or stored
        super().__init__(empty_model(folder, config, dtype))
        self.device = torch.device(device)
        try:
            self._conversion = conversion.Conversion(self.model, self.files, dtype)
            for name in (name for tie in self.model.all_tied_weights_keys.items() for name in tie):
                if name.startswith(f"{self.prefix}."):
                    raise UnsupportedCheckpoint(f"blocks read one by one must share no weights, {name} is shared")
            inside = self._groups(self.prefix)
            for group in inside:
                self._conversion.refuse_one_way(group)
            conversion.make_buffers(self.model, self.device)
        except InputError:
            raise
        except LOADING_ERRORS as error:
            raise UnsupportedCheckpoint(
                f"a model read part by part must be built without memory, {folder} is not: {first_line(error)}"
            ) from error
        self._conversion.load([group for group in self._conversion.groups if group not in inside], self.device)
        self._conversion.tie()

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        """Yield a block with its parameters as the files have them."""
        prefix = f"{self.prefix}.{index}"
        self._conversion.load(self._groups(prefix), self.device)
        try:
            yield self.model.get_submodule(prefix)
        finally:
            self._evict(prefix)

    def keep(self, parameters: Collection[str]) -> None:
        for name, tensor in self.stored(parameters):
            self.writer.put(name, in_dtype_with_zeros(name, tensor, self.writer.dtype(name)))

    def kept(self) -> list[str]:
        self.writer.flush()
        return sorted(self.writer.written)

    def dtype_of(self, parameter: str) -> torch.dtype:
        return self.writer.dtype(self.disk_names(parameter)[0])

    def disk_names(self, parameter: str) -> list[str]:
        """Return the tensors in the files that a parameter is made from; none for a tied one."""
        groups = self._conversion.groups
        return [name for group in groups if parameter in group.parameters for name in group.tensors]

    def stored(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of loaded parameters, and of those made from the same, as the files hold them."""
        for group in self._conversion.groups:
            if not set(names).isdisjoint(group.parameters):
                yield from self._conversion.as_stored(group).items()

    def _groups(self, prefix: str) -> list[ConversionGroup]:
        groups = self._conversion.groups
        return [group for group in groups if any(name.startswith(f"{prefix}.") for name in group.parameters)]

    def _evict(self, prefix: str) -> None:
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device=conversion.META)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    setattr(module, name, torch.empty_like(buffer, device=conversion.META))
