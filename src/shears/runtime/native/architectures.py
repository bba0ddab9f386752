"""Which models the native decoder covers, and what it must know of their configs.

All are like Llama: RMSNorm, rotary positions, grouped queries, gated feed-forward. `Architecture`
holds what a relative does differently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError, reading

LONGEST_HEAD = 256  # kMaxHead in csrc/ops.h
ROPES = ("default", "linear", "llama3", "yarn", "longrope")  # dynamic varies with the text's length
ACTIVATIONS = {"silu": False, "swish": False, "gelu_pytorch_tanh": True}  # whether it is gelu


class NotCoveredError(InputError):
    """A model, or an adapter, that the native decoder does not cover; transformers runs it."""


@dataclass(frozen=True)
class LayerPlan:
    """How a layer differs: the `window` of positions seen (None: all), how it `rotates`."""

    window: int | None
    rotates: bool
    is_local: bool = False  # it rotates by frequencies of its own
    is_delta: bool = False  # a gated delta net keeps a state instead of keys and values


@dataclass(frozen=True)
class DeltaPlan:
    """The sizes of gated delta nets; `window` are the tokens of their convolution."""

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    window: int

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        """The length of a token's queries, keys and values."""
        return 2 * self.key_heads * self.key_size + self.values


@dataclass(frozen=True)
class Fused:
    """The linears of one weight in the files, in the order of its rows, or so in every head."""

    parts: tuple[str, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Norms:
    """The names of a layer's norms in the files, empty for one that it lacks."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_forward: str = "post_attention_layernorm"
    after_forward: str = ""
    offset: float = 0.0  # added to the weights of all norms, those of queries and keys included
    whole: bool = False  # the norms of queries and keys are over all heads at once

    @property
    def by_place(self) -> tuple[str, str, str, str]:
        return self.before_attention, self.after_attention, self.before_forward, self.after_forward


@dataclass(frozen=True)
class Scales:
    """Factors of the embeddings, queries, logits, and of what a layer adds to the residual."""

    embeddings: float = 1.0
    queries: float | None = None  # None: one over the root of the head's length
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """What an architecture does differently from Llama, by its config."""

    layers: Callable[[Any], list[LayerPlan]]
    norms: Norms = Norms()
    scales: Callable[[Any], Scales] = lambda config: Scales()
    fused: Mapping[str, Fused] = field(default_factory=dict)
    is_partial: bool = False  # the config may let a part of each head rotate
    unsupported: tuple[str, ...] = ()  # keys of the config that must be unset
    delta: Callable[[Any], DeltaPlan | None] = lambda config: None


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
    inverse_frequencies: Float[Tensor, " R2"]  # of the first R = 2 R2 numbers of a head
    local_frequencies: Float[Tensor, " R2"] | None
    rope_scale: float  # multiplies cosines and sines
    max_positions: int
    longest: int | None  # the most positions that the frequencies hold for; None: any number
    is_gelu: bool
    norms: Norms
    scales: Scales
    fused: Mapping[str, Fused]
    delta: DeltaPlan | None


def _without_window(config: Any) -> list[LayerPlan]:
    return [LayerPlan(None, True)] * config.num_hidden_layers


def _window_of_config(config: Any) -> list[LayerPlan]:
    return [LayerPlan(config.sliding_window, True)] * config.num_hidden_layers


def _window_by_type(config: Any, is_local: bool = False) -> list[LayerPlan]:
    types: Sequence[str] = config.layer_types
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise NotCoveredError(f"layers must attend fully or in a window, got {min(unknown)}")
    local = LayerPlan(config.sliding_window, True, is_local)
    return [local if kind == "sliding_attention" else LayerPlan(None, True) for kind in types]


def _delta_by_type(config: Any) -> list[LayerPlan]:
    types: Sequence[str] = config.layer_types
    if other := set(types) - {"full_attention", "linear_attention"}:
        raise NotCoveredError(f"layers must attend fully or be gated delta nets, got {min(other)}")
    return [LayerPlan(None, True, is_delta=kind == "linear_attention") for kind in types]


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_without_window),
    "mistral": Architecture(_window_of_config),
    "qwen2": Architecture(_window_by_type),
    "qwen3": Architecture(_window_by_type),
    "smollm3": Architecture(
        lambda config: [
            LayerPlan(plan.window, bool(rotates))
            for plan, rotates in zip(_window_by_type(config), config.no_rope_layers, strict=True)
        ],
    ),
    "gemma3_text": Architecture(
        lambda config: _window_by_type(config, is_local=True),
        Norms(
            after_attention="post_attention_layernorm",
            before_forward="pre_feedforward_layernorm",
            after_forward="post_feedforward_layernorm",
            offset=1.0,
        ),
        lambda config: Scales(config.hidden_size**0.5, config.query_pre_attn_scalar**-0.5),
        unsupported=("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"),
    ),
    "phi3": Architecture(
        _window_of_config,
        fused={
            "qkv_proj": Fused(("q_proj", "k_proj", "v_proj")),
            "gate_up_proj": Fused(("gate_proj", "up_proj")),
        },
        is_partial=True,
    ),
    "granite": Architecture(
        _without_window,
        scales=lambda config: Scales(
            config.embedding_multiplier,
            config.attention_multiplier,
            config.residual_multiplier,
            1 / config.logits_scaling,
        ),
    ),
    "olmo2": Architecture(
        _without_window,
        Norms(
            before_attention="",
            after_attention="post_attention_layernorm",
            before_forward="",
            after_forward="post_feedforward_layernorm",
            whole=True,
        ),
    ),
    "qwen3_5_text": Architecture(
        _delta_by_type,
        Norms(offset=1.0),
        fused={"q_proj": Fused(("q_proj", "q_gate"), by_head=True)},
        is_partial=True,
        unsupported=("attention_bias",),
        delta=lambda config: DeltaPlan(
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.linear_conv_kernel_dim,
        ),
    ),
}


def plan_of(config: Any) -> DecoderPlan:
    """Return the plan of a transformers config; NotCoveredError, with the reason, without one."""
    with reading(f"{config.name_or_path or 'the model'}/config.json"):
        return _plan(config)


def _plan(config: Any) -> DecoderPlan:
    if config.model_type not in ARCHITECTURES:
        raise NotCoveredError(f"the native decoder supports {', '.join(ARCHITECTURES)}, not {config.model_type}")
    architecture = ARCHITECTURES[config.model_type]
    if changing := [key for key in architecture.unsupported if getattr(config, key, None)]:
        raise NotCoveredError(
            f"the native decoder supports {config.model_type} without {changing[0]}, this model has it"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 2 or not 2 <= head_dim <= LONGEST_HEAD:
        raise NotCoveredError(
            f"the native decoder supports heads of an even length up to {LONGEST_HEAD}, not {head_dim}"
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        raise NotCoveredError(f"the native decoder supports the activations {', '.join(ACTIVATIONS)}, not {activation}")
    layers = architecture.layers(config)
    rotary = _rotary(config, head_dim, is_local=any(layer.is_local for layer in layers))
    return DecoderPlan(
        layers=tuple(layers),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        eps=config.rms_norm_eps,
        **rotary,
        is_gelu=ACTIVATIONS[activation],
        norms=architecture.norms,
        scales=architecture.scales(config),
        fused=architecture.fused,
        delta=architecture.delta(config),
    )


def _rotary(config: Any, head_dim: int, is_local: bool) -> dict[str, Any]:
    by_type = "full_attention" in config.rope_parameters
    frequencies, scale = rope(config, head_dim, "full_attention" if by_type else None)
    local, local_scale = rope(config, head_dim, "sliding_attention") if is_local else (None, scale)
    if scale != local_scale:
        raise NotCoveredError("the native decoder needs one factor of cosines, this model has two")
    has_limit = config.rope_parameters.get("rope_type") == "longrope"
    limit = config.rope_parameters["original_max_position_embeddings"] if has_limit else None
    most = config.max_position_embeddings
    return {
        "inverse_frequencies": frequencies,
        "local_frequencies": local,
        "rope_scale": scale,
        "max_positions": most if limit is None else min(most, limit),
        "longest": limit,
    }


def rope(config: Any, head_dim: int, layer_type: str | None = None) -> tuple[Float[Tensor, " R2"], float]:
    """Return inverse frequencies and the factor on cosines and sines, as in transformers.

    `layer_type` names the layers where a config has positions by type of layer. Of longrope, those
    up to the original length.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    kind = settings["rope_type"]
    if kind not in ROPES or (kind == "longrope" and layer_type):
        raise NotCoveredError(f"the native decoder supports rotary positions of kind {', '.join(ROPES)}, not {kind}")
    share = settings.get("partial_rotary_factor", 1.0)
    size = int(head_dim * share)
    if size != head_dim and (size % 2 or size < 2 or not ARCHITECTURES[config.model_type].is_partial):
        raise NotCoveredError(f"the native decoder supports heads that rotate as a whole, not by a share of {share}")
    if kind == "default":
        exponents = torch.arange(0, size, 2, dtype=torch.float) / size
        return 1.0 / (settings["rope_theta"] ** exponents), 1.0
    inverse, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), layer_type=layer_type)
    return inverse.float(), float(scale)
