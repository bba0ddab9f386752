"""What a folder's config claims, compared with what its weights' files hold, before anything is built.

A config of a few bytes can claim more layers than any memory holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shears.checkpoints.tensor_format import StoredTensor, read_header
from shears.errors import InputError

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
HIDDEN = ("hidden_size", "n_embd", "d_model")
VOCABULARY = ("vocab_size",)
DENSE_INNER = "intermediate_size"
EXPERT_INNER = "moe_intermediate_size"
INNER = (DENSE_INNER, EXPERT_INNER, "n_inner", "ffn_dim", "ffn_hidden_size")
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "head_dim")
RANKS = ("r", "rank_pattern")  # of an adapter's config
NUMBERS = (*LAYERS, *EXPERTS, *HIDDEN, *VOCABULARY, *INNER, *HEADS, "rope_theta", "rms_norm_eps", "r",
           "layer_norm_eps", "max_position_embeddings")  # fmt: skip
COUNTED = (*LAYERS, *EXPERTS)  # each is an object in memory, even without weights
WITHOUT_FILES = 1 << 16  # most of these in a folder without weights


def refuse_claims(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Raise InputError where the config in a file claims more than the folder's weights can be.

    Every layer has a tensor of its own; every layer, word, expert and inner unit has a vector of
    the hidden size; the inner units of dense layers are left to the loaders, which compare shapes,
    where all layers may have experts. Quantized weights count as one bit each. InputError for a
    word in a number's place, too.
    """
    stored = list(_stored(folder))
    held = sum(map(_numbers, stored))
    for part in _parts(config):
        for key in NUMBERS:
            if isinstance(value := part.get(key), str):
                raise InputError(f"{folder / name} must hold a number as {key}, got {value!r:.40}; restore that file")
        layers = () if "peft_type" in part else LAYERS  # an adapter names those of its base
        inner = [key for key in INNER if key != DENSE_INNER or EXPERT_INNER not in part]
        width = max((size for _, size in _sizes(part, HIDDEN)), default=1)
        for keys, least, most in (
            (layers, 1, len(stored)),
            ((*HIDDEN, *HEADS, *RANKS), 1, held),
            ((*EXPERTS, *VOCABULARY, *inner), width, held),
        ):
            for key, size in _sizes(part, keys):
                if (stored and size * least > most) or (not stored and key in COUNTED and size > WITHOUT_FILES):
                    raise InputError(
                        f"{folder / name} must describe the weights beside it, got {key} {size:,} beside {held:,} "
                        f"weights in {len(stored):,} tensors; restore that file"
                    )


def _stored(folder: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a folder's files; torn files are left to their readers."""
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(InputError):
            yield from read_header(path)[0].values()


def _numbers(tensor: StoredTensor) -> int:
    """Return the weights that a tensor can hold: one an element, or one a bit of whole numbers."""
    return tensor.num_bytes // tensor.dtype.itemsize if tensor.dtype.is_floating_point else 8 * tensor.num_bytes


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it, such as that of the text model."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from _parts(value)


def _sizes(config: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yield the largest size under each of the keys that has one: a number, a list or a map of numbers."""
    for key in keys:
        value = config.get(key)
        several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if sizes := [size for size in several if type(size) is int]:
            yield key, max(sizes)
