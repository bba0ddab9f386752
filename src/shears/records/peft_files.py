"""The layout of PEFT's adapter folders: file names, tensor names, ranks by linear. Pure."""

import re
from collections.abc import Mapping

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
A = ".lora_A.weight"  # R x I: R rank, I input features
B = ".lora_B.weight"  # O x R: O output features
ADDED = ".lora_"  # in the name of every tensor that a LoRA adds to a model


def rank_patterns(ranks: Mapping[str, int], largest: int) -> dict[str, int]:
    """Return `rank_pattern`: an anchored regex per rank below the largest; PEFT reads a key as `(.*\\.)?(key)$`."""
    linears: dict[int, list[str]] = {}
    for linear, rank in ranks.items():
        if rank < largest:
            linears.setdefault(rank, []).append(re.escape(linear))
    return {f"^(?:{'|'.join(sorted(names))})": rank for rank, names in sorted(linears.items())}


def linear_of(name: str) -> str:
    """Return the linear an adapter's tensor belongs to, as the base model names it."""
    return name.removeprefix(PREFIX).split(ADDED)[0]
