"""The title and the description of a card: the kind of artifact, its base, the method that made it."""

import os
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from shears.config.embedded import EMBEDDED
from shears.records.artifacts import TRAINED_BEFORE
from shears.records.paths import HUB_NAME, last_part, without_folders

Record = Mapping[str, Any]
SPARSE = "sparse"  # a run's folder of the sparse model; the base of a recovery, whose record names none


def base_of(record: Record) -> str:
    """Return the name of the model that the artifact was made from, without the folders of this machine."""
    name = without_folders(str(record.get("model") or record.get("base") or SPARSE))
    return name if HUB_NAME.fullmatch(name) else last_part(name)


def hub_base(kind: str, record: Record) -> dict[str, Any]:
    """Return the hub's metadata on the base model; empty where the base is not on the hub.

    An embedded model is a rounded copy of a hub model: an artifact of it without training is marked as quantized.
    """
    base = str(record.get("model") or record.get("base") or "")
    if base in EMBEDDED:
        untrained = kind in ("sparsity.json", "package.json", "unpacked.json") and not _adapted(record)
        return {"base_model": EMBEDDED[base].hub, **({"base_model_relation": "quantized"} if untrained else {})}
    return {"base_model": base} if HUB_NAME.fullmatch(base) and not os.path.exists(base) else {}


TITLES = {"sparsity.json": "{}, sparse", "search_space.json": "LoRA super-adapter for {}", "merged.json": "{}, merged",
          "sub_adapter.json": "LoRA adapter for {}", "package.json": "{}, packed",
          "recovery.json": "LoRA recovery for {}", "unpacked.json": "{}, unpacked"}  # fmt: skip


def title(kind: str, record: Record) -> str:
    """Return the heading of a card."""
    return TITLES.get(kind, "{}").format(base_of(record))


def origin(kind: str, record: Record) -> str:
    """Return the description of a card: a paragraph on the artifact, its base and the method."""
    words = WORDS.get(kind, _package)(record, _source(record))
    if names := [_data(source, "data") for source in record.get(TRAINED_BEFORE) or ()]:
        words += f" What it was made from had been trained on {', '.join(dict.fromkeys(names))}."
    return f"{words} Made by shears {record.get('shears_version', '')}."


def _source(record: Record) -> str:
    base = base_of(record)
    weights = f"weights sha256 {str(record.get('base_fingerprint', ''))[:16]}..."
    if base in EMBEDDED:
        embedded = EMBEDDED[base]
        weights = f"{embedded.hub} from the {PurePosixPath(embedded.file).name} of {embedded.package}; {weights}"
    return f"`{base}` ({weights})"


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
        f"A LoRA super-adapter for {source}{_trained(record['config'])}: every smaller adapter inside it was trained "
        f"too. Ranks up to {record['max_rank']}, alpha {record['alpha']:g}."
    )


def _sub(record: Record, source: str) -> str:
    return f"A LoRA adapter for {source}, cut out of a super-adapter{_trained(record, ' trained on {}')}."


def _recovery(record: Record, source: str) -> str:
    return (
        f"A LoRA adapter of rank {record['rank']} for {source}, not trained but computed: it gives back "
        f"{record['kept']:.1%} of what pruning took away (by {record['by']})."
    )


def _merged(record: Record, source: str) -> str:
    before = record["sparsity"]["before"]
    after = record["sparsity"]["after"]
    zeros = f"{after:.1%} zeros" + ("" if after >= before else f", {before:.1%} before the adapter was merged")
    return f"{source} with a LoRA adapter{_trained(record, ', trained on {},')} merged into its weights: {zeros}."


def _package(record: Record, source: str) -> str:
    kind = "a LoRA adapter" if "ranks" in record else "an adapter"
    adapter = f" with {kind}{_trained(record, ', trained on {},')}" if _adapted(record) else ""
    return f"{source}{adapter}, packed by shears: one bit a weight, and the weights that are not zero."


def _adapted(record: Record) -> bool:
    """Tell whether the artifact contains an adapter: ours has ranks, that of another tool has bytes in a package."""
    return "ranks" in record or bool(record.get("bytes", {}).get("adapter"))


def _unpacked(record: Record, source: str) -> str:
    merged = f", with a LoRA adapter{_trained(record, ', trained on {},')} in its weights" if "ranks" in record else ""
    is_rounded = record.get("values") == "int8"
    rounded = "the nearest numbers to the package's int8" if is_rounded else "bit for bit the package's"
    return f"{source}{merged}, packed by shears and unpacked again: an ordinary model folder, its weights {rounded}."


WORDS: Mapping[str, Callable[[Record, str], str]] = {
    "sparsity.json": _sparse, "search_space.json": _super, "sub_adapter.json": _sub, "recovery.json": _recovery,
    "merged.json": _merged, "unpacked.json": _unpacked,
}  # fmt: skip


def _trained(record: Record, words: str = ", trained on {}") -> str:
    """Return `words` with the adapter's training data; empty for records of earlier versions, which lack them."""
    return words.format(_data(record, "data")) if record.get("data") else ""


def _data(config: Record, key: str) -> str:
    return f"`{without_folders(str(config.get(key)))}`"
