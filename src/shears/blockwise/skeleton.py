"""A model whose weights come from its files, and go back to them, part by part: one decoder block in memory at a time.

skeleton = Skeleton.open(folder)
skeleton.load_rest()                                  # embeddings, last norm, head
writer = TensorWriter(skeleton.files, output)
for name in ("model.layers.0", "model.layers.1"):
    skeleton.load(name)
    ...                                               # use and change the block of skeleton.model
    skeleton.store(name, writer, changed_parameters)
    skeleton.evict(name)
writer.finish()                                       # copies all the rest
"""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from shears.checkpoints.conversion import (
    LOADING_ERRORS,
    META,
    Conversion,
    ConversionGroup,
    UnsupportedCheckpoint,
    empty_model,
    make_buffers,
    read_config,
)
from shears.checkpoints.tensor_files import TensorFiles, TensorWriter, in_dtype_with_zeros
from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks


class Skeleton:
    """A causal language model, in evaluation mode, of which only the parts that were loaded hold memory.

    `model` is the model, `files` its tensors, `dtype` what floating-point weights are loaded as, `blocks` the name of
    the decoder blocks. Buffers that no file holds are real from the beginning. A loaded parameter is a new object every
    time, so hold none across `load` or `evict`.
    """

    def __init__(self, model: PreTrainedModel, files: TensorFiles, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.files, self.dtype, self.device = model, files, dtype, device
        self.blocks = decoder_blocks(model)[0]
        try:
            self._conversion = Conversion(model, files, dtype)
            self._refuse_entangled()
            make_buffers(model, device)
        except InputError:
            raise
        except LOADING_ERRORS as error:
            raise UnsupportedCheckpoint(
                f"a model read part by part must be built without memory, {files.folder} is not: {first_line(error)}"
            ) from error

    def _refuse_entangled(self) -> None:
        for name in (name for tie in self.model.all_tied_weights_keys.items() for name in tie):
            if _below(name, self.blocks):
                raise UnsupportedCheckpoint(f"blocks read one by one must share no weights, {name} is shared")
        for group in self._groups(self.blocks):
            self._conversion.refuse_one_way(group)

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> "Skeleton":
        """Return the model of a folder, without weights; they will be loaded as `dtype` (None: as `auto` would).

        InputError where weights are missing or files torn; UnsupportedCheckpoint, which is one, for adapters, quantised
        checkpoints, remote code, weights that blocks share, and conversions that cannot be undone.
        """
        folder = Path(folder)
        config, files = read_config(folder), TensorFiles(folder)
        stored = next((files.dtype(name) for name in files.names if files.dtype(name).is_floating_point), torch.float32)
        chosen = dtype or config.dtype or config.get_text_config().dtype or stored
        return cls(empty_model(folder, config, chosen), files, chosen, torch.device(device))

    def disk_names(self, parameter: str) -> list[str]:
        """Return the tensors of the files that a parameter is made from; none for one that is only tied to another."""
        groups = self._conversion.groups
        return [name for group in groups if parameter in group.parameters for name in group.tensors]

    def load(self, prefix: str) -> None:
        """Read the parameters and persistent buffers below a module's name, such as `model.layers.3`."""
        self._conversion.load(self._groups(prefix), self.device)

    def load_rest(self, blocks: str | None = None) -> None:
        """Read all that is not below `blocks` (None: the decoder blocks), and tie what the model ties."""
        inside = self._groups(blocks or self.blocks)
        self._conversion.load([group for group in self._conversion.groups if group not in inside], self.device)
        self._conversion.tie()

    def _groups(self, prefix: str) -> list[ConversionGroup]:
        groups = self._conversion.groups
        return [group for group in groups if any(_below(name, prefix) for name in group.parameters)]

    def evict(self, prefix: str) -> None:
        """Forget the parameters and persistent buffers below a module's name; AttributeError where there is no such."""
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device=META)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    setattr(module, name, torch.empty_like(buffer, device=META))

    def store(self, prefix: str, writer: TensorWriter, names: Collection[str] | None = None) -> None:
        """Put loaded parameters below `prefix` (by full name; None: all) into the writer, as the files lay them out.

        What is made from the same tensors, or tied, goes with them. ValueError for a name that is not below the prefix.
        """
        ties = self.model.all_tied_weights_keys
        known = {name for group in self._conversion.groups for name in group.parameters}.union(ties)
        below = {name for name in known if _below(name, prefix)}
        wanted = below if names is None else set(names)
        if unknown := sorted(wanted - below):
            raise ValueError(f"names must be parameters below {prefix}, got {unknown[0]}")
        wanted |= {name for tie in ties.items() if wanted & set(tie) for name in tie}
        for group in self._conversion.groups:
            if wanted.intersection(group.parameters):
                for name, tensor in self._conversion.as_stored(group).items():
                    writer.put(name, in_dtype_with_zeros(name, tensor, writer.dtype(name)))


def _below(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.")
