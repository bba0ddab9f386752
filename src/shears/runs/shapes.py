"""The shape of a model without its weights, from which the plan of a run counts memory and disk."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig

from shears.checkpoints.conversion import LOADING_ERRORS, META, empty_model, known_config
from shears.checkpoints.packed import layout
from shears.checkpoints.packed.matrices import is_block_matrix
from shears.checkpoints.tensor_files import TensorFiles
from shears.config.embedded import EMBEDDED
from shears.models.blocks import decoder_blocks, linears
from shears.models.blockwise.matrices import linear_matrix
from shears.models.fetching import cache_folder, gguf_config
from shears.models.ref import resolve
from shears.quantization import grid
from shears.records.paths import expanded

FP32_BYTES = 4
BF16_BYTES = 2
INT4_SCALE_BYTES = 2.5 / 128  # a weight, of a block's scale and zero points

_LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
_SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
_QWEN_2_5_CODER_05B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                       "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                       "tie_word_embeddings": True}  # fmt: skip
_QWEN_2_5_CODER_15B = {**_QWEN_2_5_CODER_05B, "hidden_size": 1536, "intermediate_size": 8960,
                       "num_hidden_layers": 28, "num_attention_heads": 12}  # fmt: skip
_MPT_7B = {"d_model": 4096, "n_heads": 32, "n_layers": 32, "expansion_ratio": 4, "vocab_size": 50432}
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "smollm2-135m": ("llama", _SMOLLM2),
    "huggyllama/llama-7b": ("llama", {}),  # transformers' own defaults of llama
    "huggyllama/llama-13b": ("llama", _LLAMA_13B),
    "mosaicml/mpt-7b": ("mpt", _MPT_7B),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": ("qwen2", _QWEN_2_5_CODER_05B),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": ("qwen2", _QWEN_2_5_CODER_15B),
}
"""The models of our recipes, which can be planned before a download: type in transformers, settings beside its
defaults."""


@dataclass(frozen=True)
class Shape:
    """A model whose parameters have no memory, its folder if it needs no download, the bytes of its files if known."""

    model: nn.Module
    folder: Path | None
    file_bytes: int | None

    @property
    def parameters(self) -> int:
        """Return the number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def block(self) -> int:
        """Return the number of weights in the largest decoder block."""
        return max(sum(weight.numel() for weight in block.parameters()) for block in decoder_blocks(self.model)[1])

    @property
    def beside(self) -> int:
        """Return the number of weights outside the decoder blocks."""
        blocks = decoder_blocks(self.model)[1]
        return self.parameters - sum(weight.numel() for weight in blocks.parameters())

    @property
    def width(self) -> int:
        """Return the size of the hidden states."""
        embeddings: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]  # of a PreTrainedModel
        return int(embeddings.weight.shape[1])  # type: ignore[index]

    @property
    def linear_weights(self) -> int:
        """Return the number of weights in the linears of the decoder blocks."""
        return sum(outputs * inputs for outputs, inputs in self.sides.values())

    @property
    def packed_weights(self) -> int:
        """Return the number of weights that a package packs: linears, and experts with one tensor each in the files."""
        if self.folder is None or self.file_bytes is None:
            return self.linear_weights
        files = TensorFiles(self.folder)
        tensors = {name: torch.empty(files.shape(name), dtype=files.dtype(name), device=META) for name in files.names}
        return sum(tensor.numel() for name, tensor in tensors.items() if is_block_matrix(name, tensor))

    def adapter_parameters(self, ranks: Mapping[str, int]) -> int:
        """Return the number of parameters of LoRA adapters: rank x (outputs + inputs) for every adapted linear."""
        sides = self.sides
        return sum(rank * sum(sides[name]) for name, rank in ranks.items())

    @property
    def sides(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of every linear in the decoder blocks, by name."""
        prefix, blocks = decoder_blocks(self.model)
        return {
            f"{prefix}.{index}.{name}": linear_matrix(name, linear).shape
            for index, block in enumerate(blocks)
            for name, linear in linears(block).items()
        }

    def package_bytes(self, sparsity: float, values: layout.NumberFormat, embeddings: str) -> int:
        """Return the size of the packed tensors of a package whose linears all have this sparsity.

        The parts are those of docs/package-format.md: exact without zeros, and for int4 the mean over where zeros lie.
        Other tensors have 16 bits. `embeddings` is keep, int8 or int4, for matrices with a row a word.
        """
        linears = sum(
            count * _linear_bytes(*size, sparsity, values) for size, count in Counter(self.sides.values()).items()
        )
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]  # of a PreTrainedModel
        words = int(table.weight.shape[0])
        outside = [tuple(weight.shape) for weight in self.model.parameters() if tuple(weight.shape)[:1] == (words,)]
        tables = [shape for shape in outside if len(shape) == 2]
        saved = sum(math.prod(shape) * BF16_BYTES - _table_bytes(*shape, embeddings) for shape in tables)
        return linears + BF16_BYTES * (self.parameters - self.linear_weights) - saved


@cache
def _linear_bytes(rows: int, cols: int, sparsity: float, values: layout.NumberFormat) -> int:
    """Return the size of a linear in a package: packed, or dense in 16 bits where that takes fewer bytes."""
    if values == "int4" and not sparsity:
        stored = layout.num_stored(torch.ones(rows, cols, dtype=torch.bool), values)
    elif values == "int4":
        panels, groups, _ = layout.mask_shape(rows, cols, values)
        stored = round(rows * cols * (1 - sparsity) / 2 + panels * groups / 4)  # half of the groups end in half a byte
    else:
        stored = round(rows * cols * (1 - sparsity))
    return min(layout.packed_bytes(rows, cols, stored, values), BF16_BYTES * rows * cols)


def _table_bytes(rows: int, cols: int, form: str) -> int:
    """Return the size of a matrix with one row a word."""
    if form == "int4":
        return rows * (math.ceil(cols / 2) + 3 * math.ceil(cols / grid.BLOCK))
    return rows * (cols + FP32_BYTES) if form == "int8" else BF16_BYTES * rows * cols


def shape_of(name: str, dtype: str = "auto") -> Shape | None:
    """Return the shape of a model by its name; None if it must be downloaded first and its shape is not published.

    A .gguf file becomes a folder in bf16 where `dtype` says so, else in fp32. InputError for a folder or a .gguf file
    without a model that transformers knows.
    """
    if (path := expanded(name)).is_file() and path.suffix == ".gguf":
        shape = Shape(_built(path, gguf_config(path)), None, None)
        return _as_converted(shape, BF16_BYTES if dtype == "bf16" else FP32_BYTES)
    folder = _folder(name)
    if folder is not None:
        files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Shape(_built(folder, known_config(folder)), folder, files or None)
    if name not in PUBLISHED:
        return None
    kind, settings = PUBLISHED[name]
    shape = Shape(_built(Path(name), AutoConfig.for_model(kind, **settings)), None, None)
    return _as_converted(shape, FP32_BYTES) if name in EMBEDDED else shape


def _as_converted(shape: Shape, weight_bytes: int) -> Shape:
    """Return the shape of a model that becomes a folder first, with the bytes of its files."""
    return replace(shape, file_bytes=weight_bytes * shape.parameters)


def _folder(name: str) -> Path | None:
    """Return the folder of a model that needs no download, None for others."""
    path = expanded(name)
    if path.is_dir():
        model = resolve(path)
        model.refuse_package("prune")
        return model.folder
    if name in EMBEDDED:
        cached = cache_folder() / name
        return cached if (cached / "config.json").is_file() else None
    try:
        config = try_to_load_from_cache(name, "config.json")
    except LOADING_ERRORS:  # not a hub id: a path that does not exist, for example
        return None
    return Path(config).parent if isinstance(config, str) else None


def _built(folder: Path, config: Any) -> nn.Module:
    model = empty_model(folder, config, torch.float32)
    model.tie_weights()  # empty_model does not; parameters() then counts tied weights once
    return model


def packed_bytes(
    weights: int,
    others: int,
    sparsity: float,
    value_bytes: int | float = 2,
    other_bytes: int = 2,
    scale_bytes: int | float = 0,
) -> int:
    """Return the size of a package: per weight of a linear one bit and its scales, and `value_bytes` if it is nonzero.

    All other weights take `other_bytes`; linears that packing does not shrink stay dense.
    """
    dense = max(value_bytes, other_bytes) * weights
    packed = (1 / 8 + scale_bytes + value_bytes * (1 - sparsity)) * weights
    return round(min(packed, dense) + other_bytes * others)
