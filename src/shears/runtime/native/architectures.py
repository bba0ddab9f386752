"""Which models the native decoder covers, and what it must know of their configs.

All are like Llama: RMSNorm before both parts, rotary positions, grouped queries, SwiGLU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import RECORD_ERRORS, InputError, first_line

LONGEST_HEAD = 256  # kMaxHead in csrc/ops.h
STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # the others change with the length of the text


class NotCoveredError(InputError):
    """A model, or an adapter, that the native decoder does not cover; transformers runs it."""


@dataclass(frozen=True)
class LayerPlan:
    """How a layer differs: the `window` of positions seen (None: all), whether it `rotates`."""

    window: int | None
    rotates: bool


@dataclass(frozen=True)
class DecoderPlan:
    """What the decoder must know of a model: hidden H, intermediate I, head_dim D, vocab_size V."""

    layers: tuple[LayerPlan, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    eps: float
    inverse_frequencies: Float[Tensor, " D2"]
    rope_scale: float  # multiplies cosines and sines
    max_positions: int


def _same_in_all_layers(config: Any, window: int | None) -> list[LayerPlan]:
    return [LayerPlan(window, True)] * config.num_hidden_layers


def _window_by_type(config: Any) -> list[LayerPlan]:
    types: Sequence[str] = config.layer_types
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise NotCoveredError(f"layers must attend fully or in a window, got {min(unknown)}")
    return [LayerPlan(config.sliding_window if kind == "sliding_attention" else None, True) for kind in types]


ARCHITECTURES: Mapping[str, Callable[[Any], list[LayerPlan]]] = {
    "llama": lambda config: _same_in_all_layers(config, None),  # SmolLM and SmolLM2 too
    "mistral": lambda config: _same_in_all_layers(config, getattr(config, "sliding_window", None)),
    "qwen2": _window_by_type,
    "qwen3": _window_by_type,
    "smollm3": lambda config: [
        LayerPlan(plan.window, bool(rotates))
        for plan, rotates in zip(_window_by_type(config), config.no_rope_layers, strict=True)
    ],
}


def plan_of(config: Any) -> DecoderPlan:
    """Return the plan of a transformers config; NotCoveredError, with the reason, without one.

    InputError for a value that is no number, or impossible.
    """
    try:
        return _plan(config)
    except InputError:
        raise
    except RECORD_ERRORS as error:
        file = f"{config.name_or_path or 'the model'}/config.json"
        came = first_line(error)
        raise InputError(f"{file} must hold the numbers of its architecture, got: {came}; restore that file") from error


def _plan(config: Any) -> DecoderPlan:
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise NotCoveredError(f"the native decoder covers {known}, not {config.model_type}")
    if config.hidden_act not in {"silu", "swish"}:
        raise NotCoveredError(f"the native decoder covers feed-forwards with silu, not {config.hidden_act}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 2 or not 2 <= head_dim <= LONGEST_HEAD:
        raise NotCoveredError(
            f"the native decoder covers heads of an even length up to {LONGEST_HEAD}, not of {head_dim}"
        )
    frequencies, scale = rope(config, head_dim)
    return DecoderPlan(
        layers=tuple(ARCHITECTURES[config.model_type](config)),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        eps=config.rms_norm_eps,
        inverse_frequencies=frequencies,
        rope_scale=scale,
        max_positions=config.max_position_embeddings,
    )


def rope(config: Any, head_dim: int) -> tuple[Float[Tensor, " D2"], float]:
    """Return inverse frequencies and the factor on cosines and sines, as in transformers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters["rope_type"]
    if kind not in STATIC_ROPES or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise NotCoveredError(
            f"the native decoder covers whole rotary positions of kind {', '.join(STATIC_ROPES)}, not {kind}"
        )
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float(), float(scale)
