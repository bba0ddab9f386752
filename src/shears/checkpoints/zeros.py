"""Counts of zeros: in one tensor, and in a model by layer and kind of linear. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reports import this module, and they must not load torch
    from torch import Tensor

EXPERTS = "experts"  # part of the names of linears that compute the tokens of a router
IN_BLOCK = re.compile(r"(?:^|\.)(?P<layer>\d+)\.(?P<path>.+?)(?P<suffix>\.weight)?$")
READING_ORDER = ("q_", "kv_", "k_", "v_", "qkv_", "o_", "gate_", "up_", "down_")  # not of files
Counts = Mapping[tuple[int, str], tuple[int, int]]  # (layer, path in the block) -> (weights, zeros)


def count_zeros(tensor: "Tensor") -> int:
    """Return the number of zeros in a tensor, negative zeros included."""
    return int((tensor == 0).count_nonzero())  # of booleans, because 8-bit floats cannot be counted


def place_in_block(name: str) -> tuple[int, str] | None:
    """Return the layer and the path in a block, without expert numbers; None outside of blocks."""
    if (match := IN_BLOCK.search(name)) is None:
        return None
    path = ".".join(part for part in match["path"].split(".") if not part.isdigit())
    return int(match["layer"]), path


def sparsities(counts: Counts) -> dict[str, Any]:
    """Return the shares of zeros of blocks, by layer, kind and both; a layer's experts are one."""
    names = kinds_of(path for _, path in counts)
    order = list(dict.fromkeys(names.values()))
    by_both: dict[int, dict[str, float]] = {layer: {} for layer, _ in sorted(counts)}
    for (layer, path), pair in sorted(counts.items(), key=lambda item: order.index(names[item[0][1]])):
        by_both[layer][names[path]] = _share([pair])
    return {
        "sparsity": _share(counts.values()),
        "sparsity_by_layer": {
            str(layer): _share(pair for (other, _), pair in counts.items() if other == layer) for layer in by_both
        },
        "sparsity_by_kind": {
            kind: _share(pair for (_, path), pair in counts.items() if names[path] == kind) for kind in order
        },
        "sparsity_by_linear": {str(layer): shares for layer, shares in by_both.items()},
    }


def kinds_of(paths: Iterable[str]) -> dict[str, str]:
    """Return a short, unique name of each path in a block's order: attention, network, experts."""
    split = {path: path.split(".") for path in dict.fromkeys(paths)}
    names = {path: _kind(parts, [each for each in split.values() if each != parts]) for path, parts in split.items()}
    return dict(sorted(names.items(), key=lambda item: _reading_order(item[1])))


def _kind(parts: list[str], others: list[list[str]]) -> str:
    size = len(parts) - parts.index(EXPERTS) if EXPERTS in parts else 1
    while size < len(parts) and any(other[-size:] == parts[-size:] for other in others):
        size += 1
    return ".".join(parts[-size:])


def _reading_order(kind: str) -> tuple[str, int]:
    parent, _, leaf = kind.rpartition(".")
    known = [rank for rank, start in enumerate(READING_ORDER) if leaf.startswith(start)]
    return parent if "expert" in parent else "", min(known, default=len(READING_ORDER))


def _share(counts: Iterable[tuple[int, int]]) -> float:
    pairs = list(counts)
    return sum(zeros for _, zeros in pairs) / max(sum(weights for weights, _ in pairs), 1)
