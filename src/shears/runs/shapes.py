"""The shape of a model without its weights, from which the plan of a run counts memory and disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.tensor_files import Spec, TensorFiles
from shears.checkpoints.without_code import LOADING_ERRORS, empty_model
from shears.config import ExportConfig
from shears.config.sparsify_options import EMBEDDED
from shears.export.packing import choose_form, planned_bytes
from shears.models.blocks import decoder_blocks, linear_matrix, linears
from shears.models.fetching import cache_folder, gguf_config
from shears.models.ref import gguf_named, resolve
from shears.records.paths import PREFIX, A, B, expanded

FP32_BYTES = 4
BF16_BYTES = 2

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
"""The models of our recipes, which can be planned before a download: type in transformers, settings
beside its defaults."""


class Shape:
    """A model on the meta device, its folder if it is here, the bytes of its files if known.

    Numbers of weights: `parameters` (tied ones count once), `beside` the decoder blocks, `block` in
    the largest of them (there are `num_blocks`), `linear_weights` in their linears, `products` also
    in the head. `sides` are outputs and inputs of every linear there by name, `width` is the size
    of the hidden states, `logits` the bytes that a loss holds of a token's, four times in fp32.
    """

    def __init__(self, model: nn.Module, folder: Path | None = None, file_bytes: int | None = None) -> None:
        model.tie_weights()  # type: ignore[operator]  # parameters() then has tied ones once
        self.model = model
        self.folder = folder
        self.file_bytes = file_bytes
        prefix, blocks = decoder_blocks(model)
        sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.block = max(sizes)
        self.num_blocks = len(sizes)
        self.beside = self.parameters - sum(sizes)
        self.logits = 4 * FP32_BYTES * int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self.width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        self.sides = {
            f"{prefix}.{index}.{name}": linear_matrix(name, linear).shape
            for index, block in enumerate(blocks)
            for name, linear in linears(block).items()
        }
        self.linear_weights = sum(outputs * inputs for outputs, inputs in self.sides.values())
        self.products = self.linear_weights + model.get_input_embeddings().weight.numel()  # type: ignore[operator]

    def adapter_parameters(self, ranks: Mapping[str, int]) -> int:
        """Return the number of LoRA's parameters: rank x (outputs + inputs) for every linear."""
        return sum(rank * sum(self.sides[name]) for name, rank in ranks.items())

    def package_bytes(
        self, settings: ExportConfig, sparsity: float, dtype: torch.dtype | None = None, ranks: Mapping[str, int] = {}
    ) -> int:
        """Return the size of the model's package file with this share of zeros.

        `dtype` is that of the sparse model's files, None for that of the dense model's. `ranks` are
        those of an adapter that stays beside the model, by linear.
        """
        config: Any = self.model.config
        specs = {name: (dtype if dtype and own.is_floating_point else own, shape)
                 for name, (own, shape) in self.specs.items()}  # fmt: skip
        form = choose_form(specs, settings, getattr(config.get_text_config(), "vocab_size", None))
        transposed = [name for name, each in self.model.named_modules() if isinstance(each, Conv1D)]
        adapter: dict[str, Spec] = {}
        for name, (outputs, inputs) in self.sides.items():
            if rank := ranks.get(name):
                adapter[f"{PREFIX}{name}{A}"] = (torch.float32, (rank, inputs))
                adapter[f"{PREFIX}{name}{B}"] = (torch.float32, (outputs, rank))
        return planned_bytes(specs, form, transposed, sparsity, adapter)

    @property
    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of the tensors in the model's files, without a tied head."""
        if self.folder is None or self.file_bytes is None:
            dtype = torch.float32 if (self.file_bytes or 0) > 3 * self.parameters else torch.bfloat16
            return {name: (dtype, tuple(weight.shape)) for name, weight in self.model.named_parameters()}
        files = TensorFiles(self.folder)
        once = {name for name, _ in self.model.named_parameters()}
        tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - once
        return {name: (files.dtype(name), files.shape(name)) for name in files.names if name not in tied}


def shape_of(name: str, dtype: str = "auto") -> Shape | None:
    """Return the shape of a model by its name; None if it is neither here nor in PUBLISHED.

    A .gguf file becomes a folder in bf16 where `dtype` says so, else in fp32. InputError for a
    folder or a .gguf file without a model that transformers knows.
    """
    if (file := gguf_named(name)) is not None:
        shape = Shape(empty_model(file, gguf_config(file)))
        shape.file_bytes = shape.parameters * (BF16_BYTES if dtype == "bf16" else FP32_BYTES)
        return shape
    folder = _folder(name)
    if folder is not None:
        files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Shape(empty_model(folder), folder, files or None)
    if name not in PUBLISHED:
        return None
    kind, settings = PUBLISHED[name]
    shape = Shape(empty_model(Path(name), AutoConfig.for_model(kind, **settings)))
    if name in EMBEDDED:  # converted first
        shape.file_bytes = FP32_BYTES * shape.parameters
    return shape


def _folder(name: str) -> Path | None:
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
