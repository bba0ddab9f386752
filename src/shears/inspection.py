"""Say what a folder or file is, by reading it: counts from the tensors themselves, not from what a record claims."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shears.artifacts import (
    EVALUATION,
    RESULT,
    SEARCH_SPACE,
    SPARSITY,
    SUB_ADAPTER,
    partial_folder,
    read_json,
    weights_fingerprint,
)
from shears.errors import InputError

IN_BLOCK = re.compile(r"(?:^|\.)(?P<layer>\d+)\.(?P<linear>.+)\.weight$")


def inspect(path: str | Path, against: str | Path | None = None) -> dict[str, Any]:
    """Return what an artifact is, as plain data: kind, counts, sizes, fingerprints.

    With `against`, key `fits` says whether the two belong together, and `why`. InputError for an unknown thing.
    """
    path = Path(path)
    data = _describe(path)
    if against is not None:
        data |= _fit(data, _describe(Path(against)))
    return data


def _describe(path: Path) -> dict[str, Any]:
    if path.is_file() and path.suffix == ".json":
        return {"kind": "file", "path": str(path), **read_json(path)}
    if not path.is_dir():
        raise InputError(f"the path must be an artifact's folder or JSON file, and there is no {path}")
    for marker, describe in KINDS.items():
        if (path / marker).is_file():
            return {"path": str(path), **describe(path), "size_bytes": folder_size(path)}
    if partial_folder(path).exists() or path.name.endswith(".partial"):
        raise InputError(f"{path} must be finished; its stage was interrupted, start it again with --resume")
    raise InputError(f"{path} must be a model, an adapter, a search or a run; it holds none of {', '.join(KINDS)}")


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a folder's safetensors files, one in memory at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, opened.get_tensor(name)


def _model(folder: Path) -> dict[str, Any]:
    parameters, nonzeros, linears = 0, 0, {}
    for name, tensor in tensors_of(folder):
        kept = int(torch.count_nonzero(tensor))
        parameters, nonzeros = parameters + tensor.numel(), nonzeros + kept
        found = IN_BLOCK.search(name)
        if found and tensor.ndim >= 2:
            linears[name.removesuffix(".weight")] = (found, tensor.numel(), tensor.numel() - kept)
    record = read_json(folder / SPARSITY) if (folder / SPARSITY).is_file() else {}
    return {
        "kind": "sparse model" if record else "model",
        "parameters": parameters,
        "nonzeros": nonzeros,
        "sparsity": _share([(size, zeros) for _, size, zeros in linears.values()]),
        "sparsity_by_layer": dict(sorted(_grouped(linears, lambda found: found["layer"]).items(), key=_layer)),
        "sparsity_by_kind": _grouped(linears, lambda found: found["linear"].rsplit(".", 1)[-1]),
        "fingerprint": weights_fingerprint(folder),
        "base_fingerprint": record.get("base_fingerprint"),
        "calibration_fingerprint": record.get("calibration_fingerprint"),
        "config": record.get("config"),
    }


def _layer(item: tuple[str, float]) -> int:
    return int(item[0])  # files order their tensors by text: 0, 1, 10, 11, 2


def _share(counts: list[tuple[int, int]]) -> float:
    return sum(zeros for _, zeros in counts) / max(sum(size for size, _ in counts), 1)


def _grouped(linears: dict[str, Any], key: Callable[[re.Match[str]], str]) -> dict[str, float]:
    groups: dict[str, list[tuple[int, int]]] = {}
    for found, size, zeros in linears.values():
        groups.setdefault(key(found), []).append((size, zeros))
    return {name: _share(counts) for name, counts in groups.items()}


def _adapter(folder: Path) -> dict[str, Any]:
    name, kind = (SEARCH_SPACE, "super-adapter") if (folder / SEARCH_SPACE).is_file() else (SUB_ADAPTER, "sub-adapter")
    counts = {
        tensor_name: (tensor.numel(), int(torch.count_nonzero(tensor))) for tensor_name, tensor in tensors_of(folder)
    }
    return {
        "kind": kind,
        "parameters": sum(size for size, _ in counts.values()),
        "nonzeros": sum(kept for _, kept in counts.values()),
        **read_json(folder / name),
        "fingerprint": weights_fingerprint(folder),
    }


def _search(folder: Path) -> dict[str, Any]:
    return {"kind": "search", **read_json(folder / RESULT)}


def _run(folder: Path) -> dict[str, Any]:
    return {"kind": "run", **read_json(folder / EVALUATION)}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    RESULT: _search,
    SEARCH_SPACE: _adapter,
    SUB_ADAPTER: _adapter,
    "config.json": _model,
    EVALUATION: _run,
}


def _fit(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two artifacts belong together when one names the other's fingerprint as its input's."""
    for made, source in ((one, other), (other, one)):
        for key in ("base_fingerprint", "super_adapter_fingerprint"):
            if made.get(key) is not None and made[key] == source.get("fingerprint"):
                return {"fits": True, "why": f"the {made['kind']} was made from this {source['kind']}"}
    return {
        "fits": False,
        "why": f"neither names the other's fingerprint: {one['kind']} {one.get('fingerprint', '')[:12]} was made from "
        f"{str(one.get('base_fingerprint'))[:12]}, {other['kind']} is {str(other.get('fingerprint'))[:12]}",
    }
