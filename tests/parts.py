"""Models of many architectures in several shards, and what is needed to read and write them part by part."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shears.checkpoints.tensor_files import INDEX, SINGLE
from shears.models.sources import StreamedModel
from tests.tiny import CONFIGS, VOCABULARY, WINDOW, tiny_tokenizer

LLAMA = CONFIGS["llama_untied"][1]
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 256, "eos_token_id": 256}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRID = {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", LLAMA | EXPERTS),
    "qwen3_moe": ("qwen3_moe", LLAMA | EXPERTS),
    "gpt_oss": ("gpt_oss", LLAMA | EXPERTS | {"sliding_window": WINDOW}),
    "gemma3_text": ("gemma3_text", LLAMA | {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "llama4_text": ("llama4_text", LLAMA | EXPERTS | {"intermediate_size_mlp": 48}),
    "mamba": ("mamba", SMALL | {"state_size": 8}),
    "mamba2": ("mamba2", SMALL | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "falcon_h1": ("falcon_h1", LLAMA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "jamba": ("jamba", LLAMA | EXPERTS | HYBRID | {"mamba_dt_rank": 4, "num_hidden_layers": 4}),
    "qwen3_next": ("qwen3_next", LLAMA | EXPERTS | DELTA),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "llama_scaled_rope": (
        "llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
}
ARCHITECTURES = CONFIGS | MORE
FP32, BF16 = torch.float32, torch.bfloat16


def save(folder: Path, name: str, dtype: torch.dtype = FP32, shard: str = "40KB") -> PreTrainedModel:
    """Save a random model in several shards; return it."""
    kind, settings = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def reference(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model


def block_names(source: StreamedModel) -> list[str]:
    blocks = source.model.get_submodule(source.prefix)
    return [f"{source.prefix}.{index}" for index, _ in enumerate(blocks.children())]


def assert_same(expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype, name
        assert torch.equal(tensor, got[name]), name


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors of a model in one file."""
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"})


def copied(source: Path, output: Path) -> Path:
    """Make the output folder with all but the weights."""
    shutil.copytree(source, output, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    return output


def tiny_tokenizer_beside(folder: Path) -> Path:
    """Save the tokenizer into a model's folder; return the folder."""
    tiny_tokenizer().save_pretrained(folder)
    return folder
