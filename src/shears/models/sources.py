"""Sources of decoder blocks: a model in memory, or files read and written block by block.

A fused tensor on disk becomes several parameters; experts that lie one by one on disk become one
parameter. Only this module uses private functions of transformers; tests/models/test_conversion.py
pins them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.logging import set_tqdm_hook

from shears.checkpoints.tensor_files import (
    TensorFiles,
    TensorWriter,
    in_dtype_with_zeros,
    refuse_missing,
    refuse_non_finite,
)
from shears.checkpoints.without_code import LOADING_ERRORS, UnsupportedCheckpoint, empty_model, read_config
from shears.errors import InputError, first_line
from shears.models.blocks import decoder_blocks

META = torch.device("meta")
RULE = "a model read part by part must"


class BlockSource:
    """A model and its decoder blocks in memory, changed in place; `prefix` is their list's name."""

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
        """Flush the files and return the names of the tensors that `keep` wrote; none in memory."""
        return []

    def dtype_of(self, parameter: str) -> torch.dtype:
        """Return the number format in which a parameter is written."""
        return self.model.get_parameter(parameter).dtype


class ConversionGroup(NamedTuple):
    """Parameters (or persistent buffers) and the tensors of the files that they are made from."""

    parameters: tuple[str, ...]
    tensors: tuple[str, ...]


class _LazyTensor(NamedTuple):
    """A tensor of the files that is read when transformers indexes it."""

    files: TensorFiles
    name: str

    def __getitem__(self, _: object) -> Tensor:  # type: ignore[override]
        return self.files.load(self.name)


class Conversion:
    """The conversion rules between a model on the meta device and its files.

    The constructor tries them on shapes. `groups` are the parts that can be converted on their own.
    """

    def __init__(self, model: PreTrainedModel, files: TensorFiles, dtype: torch.dtype) -> None:
        self.model = model
        self.files = files
        self.dtype = dtype
        self._rules: list[Any] = list(get_model_conversion_mapping(model))
        shapes = {name: torch.empty(files.shape(name), dtype=files.dtype(name), device=META) for name in files.names}
        report = self._convert(shapes, META)
        self.absent = set(report.missing_keys)
        self._refuse_incomplete(report)
        self.groups = self._find_groups()

    def _convert(self, tensors: Mapping[str, Any], device: torch.device) -> Any:
        config = LoadStateDictConfig(
            device_map={"": device, "no parameter": "disk"},  # a disk: read one by one, no threads
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._rules,
        )
        before = set_tqdm_hook(lambda factory, args, kwargs: args[0])  # else each block has a bar
        try:
            return core_model_loading.convert_and_load_state_dict_in_model(self.model, dict(tensors), config, None)[0]
        finally:
            set_tqdm_hook(before)

    def _refuse_incomplete(self, report: Any) -> None:
        """Raise where transformers would draw a random weight; tie weights that files hold once."""
        if errors := report.conversion_errors:
            raise UnsupportedCheckpoint(f"{RULE} convert by shapes, {min(errors)} does not")
        self.model.mark_tied_weights_as_initialized(report)
        self.model.tie_weights(missing_keys=report.missing_keys, recompute_mapping=False)
        absent = report.missing_and_mismatched()
        self.model._adjust_missing_and_unexpected_keys(report)
        refuse_missing(self.files.folder, report.missing_and_mismatched())
        if absent:  # the architecture allows these to be missing: transformers makes them up
            raise UnsupportedCheckpoint(f"{RULE} hold every weight, {min(absent)} is absent")

    def _find_groups(self) -> list[ConversionGroup]:
        """Return parameters with their tensors, in the order of the files.

        transformers renames a converter's tensors to its first target; others differ in pattern.
        """
        rename = core_model_loading.rename_source_key
        renamings = [rule for rule in self._rules if isinstance(rule, core_model_loading.WeightRenaming)]
        converters = [rule for rule in self._rules if isinstance(rule, core_model_loading.WeightConverter)]
        targets = {pattern: rule.target_patterns for rule in converters for pattern in rule.source_patterns}
        state = self.model.state_dict()
        prefix = self.model.base_model_prefix
        tensors = defaultdict[tuple[str, ...], list[str]](list)
        for name in self.files.names:
            first, pattern = rename(name, renamings, converters, prefix, state)
            if first not in state and name in state:  # as transformers does
                first, pattern = rename(name, [], [], prefix, state)
            patterns = [first] if pattern is None else targets[pattern]
            parameters = (first.replace(patterns[0], other) for other in patterns)
            tensors[tuple(parameter for parameter in parameters if parameter in state)].append(name)
        tensors.pop((), None)  # tensors that the model does not use
        if unexplained := state.keys() - self.absent.union(*tensors):
            raise UnsupportedCheckpoint(f"{RULE} have rules for every weight, there is none for {min(unexplained)}")
        return [ConversionGroup(parameters, tuple(names)) for parameters, names in tensors.items()]

    def load(self, groups: Sequence[ConversionGroup], device: torch.device) -> None:
        lazy = {name: _LazyTensor(self.files, name) for group in groups for name in group.tensors}
        report = self._convert(lazy, device)
        names = (name for group in groups for name in group.parameters)
        loaded = [(name, self.model.get_parameter_or_buffer(name)) for name in names]
        unread = (name for name, tensor in loaded if tensor.is_meta)
        refuse_missing(self.files.folder, {*unread, *report.conversion_errors})
        read = (pair for pair in loaded if isinstance(pair[1], torch.nn.Parameter))
        refuse_non_finite(self.files.folder, read)

    def as_stored(self, group: ConversionGroup) -> dict[str, Tensor]:
        """Return the group's present parameters as tensors by their names in the files."""
        find = self.model.get_parameter_or_buffer
        parameters = {name: find(name).detach() for name in group.parameters}
        prefix = f"{self.model.base_model_prefix}."  # in the model's names and in some files'
        names = {name.removeprefix(prefix): name for name in group.tensors}
        reverted = core_model_loading.revert_weight_conversion(self.model, parameters)
        return {names.get(name.removeprefix(prefix), name): each for name, each in reverted.items()}


class StreamedModel(BlockSource):
    """A model in evaluation mode with one block in memory at a time; `keep` puts it into `writer`.

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
            self._conversion = Conversion(self.model, self.files, dtype)
            for name in (name for tie in self.model.all_tied_weights_keys.items() for name in tie):
                if name.startswith(f"{self.prefix}."):
                    raise UnsupportedCheckpoint(f"blocks read one by one must share no weights, {name} is shared")
            inside = self._groups(self.prefix)
            for group in inside:
                shapes = {name: tuple(tensor.shape) for name, tensor in self._conversion.as_stored(group).items()}
                if shapes != {name: self.files.shape(name) for name in group.tensors}:
                    raise UnsupportedCheckpoint(f"{RULE} convert back into its files, {group.parameters[0]} does not")
            make_buffers(self.model, self.device)
        except InputError:
            raise
        except LOADING_ERRORS as error:
            raise UnsupportedCheckpoint(
                f"{RULE} be built without memory, {folder} is not: {first_line(error)}"
            ) from error
        self._conversion.load([group for group in self._conversion.groups if group not in inside], self.device)
        # the files hold tied weights once, or twice with equal values
        self.model.tie_weights(missing_keys=set(self._conversion.absent), recompute_mapping=False)

    @contextmanager
    def opened(self, index: int) -> Iterator[nn.Module]:
        prefix = f"{self.prefix}.{index}"
        self._conversion.load(self._groups(prefix), self.device)
        try:
            yield self.model.get_submodule(prefix)
        finally:
            self._evict(prefix)

    def keep(self, parameters: Collection[str]) -> None:
        """Write loaded parameters, with those that share their tensors, as the files hold them."""
        for group in self._conversion.groups:
            if not set(parameters).isdisjoint(group.parameters):
                for name, each in self._conversion.as_stored(group).items():
                    self.writer.put(name, in_dtype_with_zeros(name, each, self.writer.dtype(name)))

    def kept(self) -> list[str]:
        self.writer.flush()
        return sorted(self.writer.written)

    def dtype_of(self, parameter: str) -> torch.dtype:
        return self.writer.dtype(self.disk_names(parameter)[0])

    def disk_names(self, parameter: str) -> list[str]:
        """Return the tensors in the files that a parameter is made from; none for a tied one."""
        groups = self._conversion.groups
        return [name for group in groups if parameter in group.parameters for name in group.tensors]

    def _groups(self, prefix: str) -> list[ConversionGroup]:
        groups = self._conversion.groups
        return [group for group in groups if any(name.startswith(f"{prefix}.") for name in group.parameters)]

    def _evict(self, prefix: str) -> None:
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device=META)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    setattr(module, name, torch.empty_like(buffer, device=META))


def make_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies), as from_pretrained does."""
    model._move_missing_keys_from_meta_to_device(set(), {"": "cpu"}, None, None)  # type: ignore[arg-type]  # takes a set
    with torch.random.fork_rng(devices=[]):  # some architectures draw random numbers here
        model._initialize_missing_keys(False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(device))
