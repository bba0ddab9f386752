"""Tiny models that the native decoder covers, with weights that show every mistake, and backends of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from shears.checkpoints.packed_layout import NumberFormat
from shears.runtime import loading
from shears.runtime.native import kernels_available
from shears.runtime.native.model_source import source_of_model
from tests.tiny import VOCABULARY, WINDOW, tiny_model

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
}
GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 12, "head_dim": 16}
PHI3 = {"num_key_value_heads": 2, "hidden_size": 48, "num_attention_heads": 4}  # heads of 12: no whole panels
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1 / 3}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.5],
    "long_factor": [2.0, 3.0, 4.0],
}
GRANITE = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 4.0,
}
QWEN35: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
WINDOWED = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied head": ("llama", {}),
    "llama, own head": ("llama_untied", {}),
    "llama, biases, heads of 12": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama, heads of 40, all their own keys": ("llama", {"head_dim": 40, "num_key_value_heads": 4}),
    "llama, five queries a key": ("llama", {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40}),
    "mistral, window": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, biases": ("qwen2", {}),
    "qwen2, window in one layer": ("qwen2", WINDOWED),
    "qwen3, norms of queries and keys": ("qwen3", {}),
    "smollm3, layers without positions": ("smollm3", {"num_hidden_layers": 4}),
    "gemma3, windows with positions of their own": ("gemma3_text", GEMMA3),
    "gemma3, linear positions": ("gemma3_text", {**GEMMA3, "rope_parameters": {"full_attention": ROPES["linear"]}}),
    "phi3, fused": ("phi3", {"num_key_value_heads": 2}),
    "phi3, a third of heads rotates, window": ("phi3", {**PHI3, "rope_parameters": PARTIAL, "sliding_window": WINDOW}),
    "phi3, longrope": (
        "phi3",
        {**PHI3, "rope_parameters": LONGROPE, "original_max_position_embeddings": 160},
    ),
    "granite, multipliers": ("granite", GRANITE),
    "granite, biases": ("granite", {**GRANITE, "attention_bias": True, "mlp_bias": True}),
    "olmo2, norms behind": ("olmo2", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3.5, gated delta nets": ("qwen3_5_text", QWEN35),
    "qwen3.5, more queries, heads of 16": ("qwen3_5_text", QWEN35 | {"head_dim": 16, "linear_value_head_dim": 20}),
    **{f"llama, {name} positions": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
}

OF_THIS_YEAR = [name for name in MODELS if name.startswith(("gemma3", "phi3", "granite", "olmo2", "qwen3.5"))]

PACKAGED = ["gemma3, linear positions", "phi3, fused", "phi3, longrope", "granite, multipliers", "olmo2, norms behind",
            "qwen3.5, gated delta nets"]  # fmt: skip


def extension_is_missing() -> bool:
    """Return whether to skip tests of the extension; CI must have it."""
    return not kernels_available() and not os.environ.get("CI")


def covered(name: str = "llama, tied head") -> PreTrainedModel:
    """Return a model of MODELS: half of its weights are 0, the others large; norms and biases vary."""
    kind, changes = MODELS[name]
    model = tiny_model(kind, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "_proj" in parameter_name and parameter.ndim == 2:  # qkv_proj, gate_up_proj and in_proj_a, too
                parameter.copy_(torch.where(noise > 0, 8 * parameter, 0.0))
            elif "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.3 * noise)
    return model


def with_lora(model: PreTrainedModel, targets: Sequence[str]) -> PeftModel:
    """Add a LoRA to the linears: rank 3 on the first, 5 on the others; its B is random."""
    config = LoraConfig(r=5, lora_alpha=10, target_modules=list(targets), rank_pattern={targets[0]: 3})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adapted: PeftModel = get_peft_model(model, config).eval()
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.3)
    return adapted


def backend(
    model: nn.Module,
    values: NumberFormat = "fp32",
    *,
    threads: int = 1,
    sparse: bool = True,
    max_length: int | None = None,
) -> "NativeBackend":
    """Return the native backend of a model; needs the extension, unlike the rest of this file."""
    from shears.runtime.native.decoder import NativeBackend

    source = source_of_model(model, values, sparse=sparse)
    return NativeBackend(source, threads, max_length=max_length, max_sequences=4)


def text(length: int, seed: int = 0) -> list[int]:
    """Return random tokens."""
    tokens: list[int] = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens


@torch.no_grad()
def expected(model: nn.Module, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return what transformers computes, as float32."""
    logits: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0]
    return logits.float().numpy()


@contextmanager
def running_in(backend: str) -> Iterator[None]:
    """Let packages run in the native decoder or in transformers, as where that does not cover them."""
    with pytest.MonkeyPatch.context() as patched:
        if backend == "transformers":
            patched.setattr(loading, "kernels_available", lambda: False)
        yield
