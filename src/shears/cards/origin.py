"""What an artifact is and what it was made from, in words of a card."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def base_of(record: Record) -> str:
    """Return the name of the model that the artifact was made from."""
    return str(record.get("model") or record.get("base") or "")


def shown(name: str) -> str:
    """Return a model's name without the folders of the machine it lay on."""
    return Path(name).name if Path(name).is_absolute() else name


TITLES = {"sparsity.json": "{}, sparse", "search_space.json": "LoRA super-adapter for {}", "merged.json": "{}, merged",
          "sub_adapter.json": "LoRA adapter for {}", "package.json": "{}, packed"}  # fmt: skip


def title(kind: str, record: Record) -> str:
    """Return what a card is headed by."""
    return TITLES.get(kind, "{}").format(shown(base_of(record)))


def origin(kind: str, record: Record) -> str:
    """Return a paragraph: what it is, from what, by which method."""
    fingerprint = str(record.get("base_fingerprint", ""))[:16]
    source = f"`{shown(base_of(record))}` (weights sha256 {fingerprint}...)"
    words = WORDS.get(kind, _package)(record, source)
    return f"{words} Made by shears {record.get('shears_version', '')}."


def _sparse(record: Record, source: str) -> str:
    config = record["config"]
    text = f", calibrated on {_data(config, 'calibration')}" if record.get("calibration_fingerprint") else ""
    return (
        f"{source}, pruned to {record['achieved']:.1%} zeros in its decoder blocks by {config['method']} "
        f"(pattern {config['pattern']}, allocation {config['allocation']}{text}). An ordinary model folder with zeros "
        "in place."
    )


def _super(record: Record, source: str) -> str:
    return (
        f"A LoRA super-adapter for {source}, trained on {_data(record['config'], 'data')}: every smaller adapter "
        f"inside it was trained too. Ranks up to {record['max_rank']}, alpha {record['alpha']:g}."
    )


def _sub(record: Record, source: str) -> str:
    return f"A LoRA adapter for {source}, cut out of a super-adapter trained on {_data(record, 'data')}."


def _merged(record: Record, source: str) -> str:
    before, after = record["sparsity"]["before"], record["sparsity"]["after"]
    zeros = f"{after:.1%} zeros" + ("" if after >= before else f", {before:.1%} before the adapter was merged")
    return f"{source} with a LoRA adapter merged into its weights: {zeros}."


def _package(record: Record, source: str) -> str:
    return f"{source}, packed by shears: one bit a weight, and the weights that are not zero."


WORDS: Mapping[str, Callable[[Record, str], str]] = {
    "sparsity.json": _sparse, "search_space.json": _super, "sub_adapter.json": _sub, "merged.json": _merged
}  # fmt: skip


def _data(config: Record, key: str) -> str:
    return f"`{shown(str(config.get(key)))}`"
