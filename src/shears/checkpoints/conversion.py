"""Convert the tensors in a model's files into the parameters of transformers' model, and back.

A fused tensor on disk becomes several parameters; experts that lie one by one on disk become one
parameter. Only this module uses private functions of transformers;
tests/checkpoints/test_conversion.py pins them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.logging import set_tqdm_hook

from shears.checkpoints.tensor_files import TensorFiles, refuse_missing, refuse_non_finite
from shears.checkpoints.without_code import UnsupportedCheckpoint

META = torch.device("meta")
RULE = "a model read part by part must"


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
        self._absent = set(report.missing_keys)
        self._refuse_incomplete(report)
        self.groups = self._find_groups()

    def _convert(self, tensors: Mapping[str, Any], device: torch.device) -> Any:
        config = LoadStateDictConfig(
            device_map={"": device, "no parameter": "disk"},  # a disk: read one by one, no threads
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._rules,
        )
        before = set_tqdm_hook(lambda factory, args, kwargs: args[0])  # else a progress bar for every block
        try:
            return core_model_loading.convert_and_load_state_dict_in_model(self.model, dict(tensors), config, None)[0]
        finally:
            set_tqdm_hook(before)

    def _refuse_incomplete(self, report: Any) -> None:
        """Raise where transformers would draw a weight at random; tie weights that the files hold once."""
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

        transformers renames a converter's tensors to its first target; the others differ in the pattern.
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
        if unexplained := state.keys() - self._absent.union(*tensors):
            raise UnsupportedCheckpoint(f"{RULE} have rules for every weight, there is none for {min(unexplained)}")
        return [ConversionGroup(parameters, tuple(members)) for parameters, members in tensors.items()]

    def load(self, groups: Sequence[ConversionGroup], device: torch.device) -> None:
        tensors = {name: _LazyTensor(self.files, name) for group in groups for name in group.tensors}
        report = self._convert(tensors, device)
        names = (name for group in groups for name in group.parameters)
        loaded = [(name, self.model.get_parameter_or_buffer(name)) for name in names]
        unread = (name for name, tensor in loaded if tensor.is_meta)
        refuse_missing(self.files.folder, {*unread, *report.conversion_errors})
        read = (pair for pair in loaded if isinstance(pair[1], torch.nn.Parameter))
        refuse_non_finite(self.files.folder, read)

    def tie(self) -> None:
        """Tie the weights that the model shares; the files hold them once, or twice with equal values."""
        self.model.tie_weights(missing_keys=set(self._absent), recompute_mapping=False)

    def as_stored(self, group: ConversionGroup) -> dict[str, Tensor]:
        """Return the group's present parameters as tensors by their names in the files."""
        find = self.model.get_parameter_or_buffer
        parameters = {name: find(name).detach() for name in group.parameters}
        prefix = f"{self.model.base_model_prefix}."  # in the model's names, and in those of some files
        names = {name.removeprefix(prefix): name for name in group.tensors}
        reverted = core_model_loading.revert_weight_conversion(self.model, parameters)
        return {names.get(name.removeprefix(prefix), name): tensor for name, tensor in reverted.items()}

    def refuse_one_way(self, group: ConversionGroup) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.as_stored(group).items()}
        if shapes != {name: self.files.shape(name) for name in group.tensors}:
            raise UnsupportedCheckpoint(f"{RULE} convert back into its files, {group.parameters[0]} does not")


def make_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies), as from_pretrained does."""
    model._move_missing_keys_from_meta_to_device(set(), {"": "cpu"}, None, None)  # type: ignore[arg-type]  # takes a set
    with torch.random.fork_rng(devices=[]):  # some architectures draw random numbers here
        model._initialize_missing_keys(False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(device))
