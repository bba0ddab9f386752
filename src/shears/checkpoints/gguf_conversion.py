"""Write a GGUF file's model as a model folder with one dequantized tensor in memory at a time.

transformers itself names the tensors and undoes llama.cpp's changes to them (permuted queries and
keys, norms plus one), so that the files have the bytes that transformers would write. Its functions
for this are private; tests/checkpoints/test_gguf_conversion.py pins them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, core_model_loading
from transformers import modeling_gguf_pytorch_utils as of_transformers
from transformers.integrations.gguf.utils import is_gguf_arch_supported

from shears.checkpoints.conversion import empty_model
from shears.checkpoints.gguf_file import GgufFile, GgufTensor, can_dequantize, read_gguf
from shears.checkpoints.gguf_heads import EMBEDDINGS, HEAD, Twins
from shears.checkpoints.tensor_files import SINGLE, in_dtype
from shears.checkpoints.tensor_format import StoredTensor, as_bytes, opened, read_at, write_at, write_layout
from shears.checkpoints.without_code import load_config
from shears.errors import InputError
from shears.progress import Meter, meter

CHUNK = 1 << 24  # bytes of the file that are dequantized at once
MB = 10**6
BY_TENSOR = {
    "TensorProcessor", "LlamaTensorProcessor", "BloomTensorProcessor", "GPT2TensorProcessor", "MambaTensorProcessor",
    "NemotronTensorProcessor", "Gemma2TensorProcessor",
}  # fmt: skip
"""Processors of transformers that make one tensor of one; those of experts collect several."""
FORCED_TIES = ("falcon", "bloom")  # transformers ties their embeddings, whatever the file holds
KV_HEADS = "attention.head_count_kv"


class NotStreamed(Exception):  # noqa: N818  # no error: transformers converts the file as a whole
    """The file cannot be converted tensor by tensor; the message says why."""


@dataclass(frozen=True)
class Stream:
    """How a file becomes a model folder: names of its parameters, and what undoes llama.cpp."""

    file: GgufFile
    model: PreTrainedModel
    processor: Any
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def parameter(self, tensor: GgufTensor, weights: NDArray[np.float32]) -> Tensor:
        """Return a dequantized tensor as the model's parameter, in fp32."""
        collected = dict[str, Any]()
        result = self.processor.process(
            weights=weights,
            name=tensor.name,
            tensor_key_mapping=self.names,
            parsed_parameters={"tensors": collected},
        )
        name = self.names[tensor.name]
        parameter = torch.as_tensor(collected.get(name, result.weights))
        if tuple(parameter.shape) != self.shapes[name]:
            rule = f"{self.file.path} must hold {tensor.name} of shape {self.shapes[name]}"
            raise InputError(f"{rule}, got {tuple(parameter.shape)}; get it again")
        return parameter.contiguous()


def write_stream(stream: Stream, work: Path, dtype: torch.dtype) -> None:
    """Write a planned model into `work`: weights in `dtype` in one file, and configurations.

    InputError where the file changed meanwhile. OSError where the disk is full, before the first tensor.
    """
    specs = {name: (dtype, stream.shapes[name]) for name in sorted(stream.shapes)}
    stored = dict(zip(specs, write_layout(work / SINGLE, specs, {"format": "pt"}), strict=True))
    total = sum(tensor.num_bytes for tensor in stored.values())
    with (
        meter(f"converting {stream.file.path.name}", max(total // MB, 1), "MB") as progress,
        opened(stream.file.path) as source,
        (work / SINGLE).open("r+b", buffering=0) as target,
    ):
        moved = _Moved(progress)
        for tensor in stream.file.tensors:
            if tensor.name in stream.names:
                parameter = stream.parameter(tensor, dequantized(tensor, source, stream.file.path))
                name = stream.names[tensor.name]
                _write(name, parameter, stored[name], target, moved)
                del parameter  # before the next one is read
        os.fsync(target.fileno())
    _save_configs(stream.model, work, dtype)


class _Moved:
    """Tells a meter of megabytes about bytes."""

    def __init__(self, progress: Meter) -> None:
        self._progress = progress
        self._bytes = 0

    def add(self, count: int) -> None:
        whole = (self._bytes + count) // MB - self._bytes // MB
        self._bytes += count
        if whole:
            self._progress.advance(whole)


def plan_stream(folder: Path, name: str, twins: Twins | None = None) -> Stream:
    """Return how the file `folder`/`name` is converted, of `twins` one alone.

    NotStreamed where transformers must convert it as a whole. InputError where the file is damaged,
    or holds no causal language model.
    """
    file = read_gguf(folder / name)
    architecture = file.architecture
    if unknown := sorted({tensor.kind.name for tensor in file.tensors if not can_dequantize(tensor.kind)}):
        raise NotStreamed(f"gguf does not dequantize {unknown[0]}")
    kind = of_transformers.TENSOR_PROCESSORS.get(architecture, of_transformers.TensorProcessor)
    if is_gguf_arch_supported(architecture) or kind.__name__ not in BY_TENSOR:
        raise NotStreamed(f"tensors of {architecture} are not converted one by one")
    config = load_config(folder, gguf_file=name)
    if twins is not None:
        config.tie_word_embeddings = True
    processor = kind(config=_processor_config(file, config))
    model = empty_model(Path(name), config, torch.float32)
    names: dict[str, str] = of_transformers.get_gguf_hf_weights_map(model, processor)
    shapes = _saved_shapes(model, file, twins)
    if twins is not None:
        names[HEAD] = names[EMBEDDINGS]
        del names[twins.left_out.name]
    used = {tensor.name: names[tensor.name] for tensor in file.tensors if names.get(tensor.name) in shapes}
    sizes = {used[tensor.name]: tensor.numel for tensor in file.tensors if tensor.name in used}
    if len(sizes) < len(used) or sizes != {name: int(np.prod(shape)) for name, shape in shapes.items()}:
        raise NotStreamed("its tensors are not the model's parameters one by one")
    return Stream(file, model, processor, used, shapes)


def _processor_config(file: GgufFile, config: Any) -> dict[str, Any]:
    """Return the model's settings as transformers gives them to a processor."""
    settings: dict[str, Any] = config.to_dict()
    if f"{file.architecture}.{KV_HEADS}" not in file.metadata:
        settings.pop("num_key_value_heads", None)  # transformers leaves out what the file lacks
    return settings


def _saved_shapes(model: PreTrainedModel, file: GgufFile, twins: Twins | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that transformers saves, by name: tied weights once."""
    state = model.state_dict()
    if set(core_model_loading.revert_weight_conversion(model, dict(state))) != set(state):
        raise NotStreamed("its parameters have other names in files")
    tied = set(model.all_tied_weights_keys)
    has_head = twins is None and any(tensor.name == HEAD for tensor in file.tensors)
    if has_head and (tied or file.architecture in FORCED_TIES):
        raise NotStreamed("its output head is tied, and also in the file")
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied}


def dequantized(tensor: GgufTensor, source: FileIO, path: Path) -> NDArray[np.float32]:
    """Return a tensor in fp32, dequantized some rows at a time: gguf needs several times their memory."""
    flat = np.empty((tensor.numel // tensor.shape[-1], tensor.shape[-1]), np.float32)
    step = max(CHUNK // max(tensor.row_bytes, 1), 1)
    for begin in range(0, len(flat), step):
        rows = np.empty((min(step, len(flat) - begin), tensor.row_bytes), np.uint8)
        read_at(source, path, tensor.offset + begin * tensor.row_bytes, rows.reshape(-1).data)
        flat[begin : begin + len(rows)] = dequantize(rows, tensor.kind)
    return flat.reshape(tensor.shape)


def _write(name: str, parameter: Tensor, stored: StoredTensor, target: FileIO, moved: _Moved) -> None:
    """Write a parameter at its place, cast to its dtype there piece by piece."""
    offset = stored.offset
    for piece in parameter.reshape(-1).split(CHUNK):
        data = as_bytes(in_dtype(name, piece, stored.dtype))
        write_at(target, offset, data)
        offset += len(data)
        moved.add(len(data))


def _save_configs(model: PreTrainedModel, work: Path, dtype: torch.dtype) -> None:
    """Write the configurations as `save_pretrained` of a loaded model does."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(work)
    if model.can_generate():
        model.generation_config.save_pretrained(work)
