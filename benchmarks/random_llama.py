"""A Llama checkpoint with random weights, written file by file, and random token ids for calibration.

random_llama(folder, "1b")                        # 1.1 B parameters, 4.4 GB
random_sequences(folder / "ids.jsonl", "1b", num_sequences=32, length=512)
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

BLOCKS_PER_FILE = 2
STANDARD_DEVIATION = 0.02

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    },
}


def random_llama(folder: Path, preset: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write config, safetensors and their index to `folder`, at most two blocks in memory; return the folder.

    Matrices are normal with standard deviation 0.02, norms one; the head is not tied to the embeddings.
    """
    config = LlamaConfig(**PRESETS[preset], tie_word_embeddings=False, dtype=dtype, architectures=["LlamaForCausalLM"])
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    parts = list(_shapes(config))
    weight_map = dict[str, str]()
    size = 0
    for number, shapes in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _tensor(shape, generator).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def random_sequences(path: Path, preset: str, num_sequences: int, length: int, seed: int = 0) -> Path:
    """Write a JSONL file of rows of random `input_ids`, for a model that has no tokenizer; return its path."""
    generator = random.Random(seed)
    vocabulary = PRESETS[preset]["vocab_size"]
    with path.open("w") as file:
        for _ in range(num_sequences):
            file.write(json.dumps({"input_ids": [generator.randrange(vocabulary) for _ in range(length)]}) + "\n")
    return path


def _shapes(config: LlamaConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the shapes of each file's tensors: the embeddings, a few blocks per file, the head."""
    vocabulary = (config.vocab_size, config.hidden_size)
    layers = range(config.num_hidden_layers)
    yield {"model.embed_tokens.weight": vocabulary}
    for first in layers[::BLOCKS_PER_FILE]:
        yield {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in layers[first : first + BLOCKS_PER_FILE]
            for name, shape in _block_shapes(config).items()
        }
    yield {"model.norm.weight": (config.hidden_size,), "lm_head.weight": vocabulary}


def _block_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * (config.num_key_value_heads or config.num_attention_heads)
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _tensor(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).normal_(0, STANDARD_DEVIATION, generator=generator)
