"""Describe a folder or file; counts come from the tensors themselves, not from records."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, GGUFValueType
from safetensors import safe_open

from shears.checkpoints.packed.file import is_package, read_package
from shears.checkpoints.tensor_files import quantized_by
from shears.checkpoints.zeros import EXPERTS, count_zeros, place_in_block, sparsities
from shears.config.export import FORMAT_OF_RECORD
from shears.errors import InputError, reading
from shears.quantization.training import GRIDS
from shears.records import artifacts
from shears.records.folders import partial_folder

MODELS = {
    artifacts.SPARSITY: "sparse model",
    artifacts.HEALED: "healed model",
    **{record: form.called for record, form in FORMAT_OF_RECORD.items() if form.holds in ("model", "unpacked")},
}
"""What to call the models with these records."""
ADAPTERS = {
    artifacts.SEARCH_SPACE: "super-adapter",
    **{record: form.called for record, form in FORMAT_OF_RECORD.items() if form.holds == "adapter"},
    artifacts.RECOVERY: "recovery",
}
"""What to call the adapters with these records."""
ADAPTED = ("super_adapter_fingerprint", "sub_adapter_fingerprint")  # keys of what has an adapter
GGUF_FACTS = {
    "name": "general.name",
    "blocks": "{}.block_count",
    "width": "{}.embedding_length",
    "inner_width": "{}.feed_forward_length",
    "heads": "{}.attention.head_count",
    "key_value_heads": "{}.attention.head_count_kv",
    "context": "{}.context_length",
    "tokenizer": "tokenizer.ggml.model",
    "pre_tokenizer": "tokenizer.ggml.pre",
}
"""What `inspect` tells of a GGUF file, by the key of its metadata; {} is the architecture."""
INPUTS = ("base_fingerprint", *ADAPTED, "model_fingerprint", "adapter_fingerprint")  # of its sources


def inspect(path: str | Path, against: str | Path | None = None) -> dict[str, Any]:
    """Return the kind, counts, sizes and fingerprints of an artifact as plain data.

    With `against`, `fits` tells whether the two belong together and `why` gives the reason.
    InputError for a path that is not an artifact.
    """
    path = Path(path)
    data = _describe(path)
    if against is not None:
        data |= _fit(data, _describe(Path(against)))
    return data


def _describe(path: Path) -> dict[str, Any]:
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    if path.is_file() and path.suffix == ".json":
        return {"kind": "file", "path": str(path), **artifacts.read_object(path)}
    if not path.is_dir():
        rule = "the path must be a folder, a JSON file or a .gguf file"
        raise InputError(f"{rule}, {'got the file' if path.exists() else 'there is no'} {path}; check the path")
    for marker, describe in KINDS.items():
        if (path / marker).is_file():
            num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            return {"path": str(path), **describe(path), "size_bytes": num_bytes}
    resolved = path.resolve()  # because `.` has no name
    if resolved.name.endswith(".partial") or (resolved.name and partial_folder(resolved).exists()):
        todo = "start it again with --resume"
        raise InputError(f"{path} must be finished, but its stage was interrupted; {todo}")
    rule = "a model, or an adapter, a search or a run of shears"
    raise InputError(f"{path} must be {rule}; it has none of {', '.join(KINDS)}")


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a folder's safetensors files, or of a package's model, one at a time."""
    if is_package(folder):
        package = read_package(folder)
        tied = package.index.tied
        yield from ((name, tensor) for name, tensor in package.model_tensors() if name not in tied)
        return
    for file in sorted(path for path in folder.glob("*.safetensors") if path.name != GRIDS):
        with reading(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, opened.get_tensor(name)


def _model(folder: Path) -> dict[str, Any]:
    parameters = 0
    nonzeros = 0
    lists = defaultdict[str, dict[tuple[int, str], tuple[int, int]]](dict)  # decoder or image blocks
    for name, tensor in tensors_of(folder):
        zeros_here = count_zeros(tensor)
        parameters += tensor.numel()
        nonzeros += tensor.numel() - zeros_here
        place = _place(name, tensor)
        if place is not None:
            counts = lists[f".{name}".partition(f".{place[0]}.")[0]]
            weights, zeros = counts.get(place, (0, 0))
            counts[place] = (weights + tensor.numel(), zeros + zeros_here)
    name = next((name for name in MODELS if (folder / name).is_file()), "")
    record = artifacts.read_object(folder / name) if name else {}
    largest = max(lists.values(), key=lambda counts: sum(size for size, _ in counts.values()), default={})
    return {
        "kind": MODELS.get(name, "model"),
        "parameters": parameters,
        "nonzeros": nonzeros,
        **sparsities(largest),
        **({"quantized": quantized} if (quantized := quantized_by(folder)) else {}),
        "fingerprint": artifacts.weights_fingerprint(folder),
        "base_fingerprint": record.get("base_fingerprint"),
        "calibration_fingerprint": record.get("calibration_fingerprint"),
        **{key: record[key] for key in ADAPTED if record.get(key)},
        "config": record.get("config"),
    }


def _place(name: str, tensor: torch.Tensor) -> tuple[int, str] | None:
    """Return the layer and the path of a weight matrix in a block; None for any other tensor.

    Matrices are named `weight`; stacks of experts are floating-point 3-D tensors below `experts`.
    """
    place = place_in_block(name)
    if place is None:
        return None
    stacked = EXPERTS in place[1].split(".") and tensor.ndim == 3 and tensor.is_floating_point()
    return place if stacked or (name.endswith(".weight") and tensor.ndim >= 2) else None


def _adapter(folder: Path) -> dict[str, Any]:
    name, kind = next((name, kind) for name, kind in ADAPTERS.items() if (folder / name).is_file())
    counts = [(tensor.numel(), count_zeros(tensor)) for _, tensor in tensors_of(folder)]
    parameters = sum(size for size, _ in counts)
    return {
        "kind": kind,
        "parameters": parameters,
        "nonzeros": parameters - sum(zeros for _, zeros in counts),
        **artifacts.read_object(folder / name),
        "fingerprint": artifacts.weights_fingerprint(folder),
    }


def _gguf(path: Path) -> dict[str, Any]:
    """Return what the header of a GGUF file says of its model."""
    with reading(path):
        reader = GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
        facts = {}
        for name, key in GGUF_FACTS.items():
            field = reader.fields.get(key.format(architecture))
            if field is not None and field.types[0] != GGUFValueType.ARRAY:
                facts[name] = field.contents()
        types = defaultdict[str, Counter[str]](Counter)
        for tensor in reader.tensors:
            counts = {"tensors": 1, "parameters": int(tensor.n_elements), "bytes": int(tensor.n_bytes)}
            types[tensor.tensor_type.name].update(counts)
    parameters = sum(counts["parameters"] for counts in types.values())
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    return {
        "path": str(path),
        "kind": "GGUF file",
        "architecture": architecture,
        **facts,
        **({} if tokens is None else {"vocabulary": len(tokens.data)}),
        "chat_template": "tokenizer.chat_template" in reader.fields,
        "parameters": parameters,
        "tensors": len(reader.tensors),
        "types": {name: dict(counts) for name, counts in sorted(types.items(), key=lambda item: -item[1]["bytes"])},
        "bits_per_parameter": 8 * sum(counts["bytes"] for counts in types.values()) / max(parameters, 1),
        "bytes_as_fp32": 4 * parameters,
        "bytes_as_bf16": 2 * parameters,
        "size_bytes": path.stat().st_size,
    }


def _gguf_folder(folder: Path) -> dict[str, Any]:
    """Return what the file of format gguf says, and what its record says of its sources."""
    record = artifacts.read_record(folder, artifacts.GGUF, "file_bytes", "config")
    kept = {key: record[key] for key in ("base_fingerprint", *ADAPTED, "config") if record.get(key) is not None}
    return {**_gguf(folder / artifacts.GGUF_FILE), "kind": FORMAT_OF_RECORD[artifacts.GGUF].called, **kept}


OF_PACKAGE = ("values", "rounding", "num_linears", "bytes", "ratio", "ranks", "calibration_fingerprint")


def _package(folder: Path) -> dict[str, Any]:
    needed = ("bytes", "ratio", "base_fingerprint", "config")
    record = artifacts.read_record(folder, artifacts.PACKAGE, *needed)
    tensors = read_package(folder).adapter().values()
    sizes = {f"bytes_{name}": size for name, size in record["bytes"].items()}
    ratios = {f"size_of_dense_{name}": ratio for name, ratio in record["ratio"].items()}
    return {
        **_model(folder),
        "kind": "package",
        "adapter_parameters": sum(tensor.numel() for tensor in tensors),
        "base_fingerprint": record["base_fingerprint"],
        **{key: record[key] for key in (*ADAPTED, *OF_PACKAGE) if record.get(key) is not None},
        **sizes,
        **ratios,
        "config": record["config"],
    }


def _record(kind: str, name: str, folder: Path) -> dict[str, Any]:
    return {"kind": kind, **artifacts.read_object(folder / name)}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    artifacts.PACKAGE: _package,
    artifacts.GGUF: _gguf_folder,
    artifacts.RESULT: partial(_record, "search", artifacts.RESULT),
    **dict.fromkeys(ADAPTERS, _adapter),
    "config.json": _model,
    artifacts.EVALUATION: partial(_record, "run", artifacts.EVALUATION),
}


def _fit(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Tell whether one of two artifacts was made from the other, by the fingerprint in its record."""
    for made, source in ((one, other), (other, one)):
        for key in INPUTS:
            if made.get(key) is not None and made[key] == source.get("fingerprint"):
                return {"fits": True, "why": f"the {made['kind']} was made from this {source['kind']}"}
    base = str(one.get("base_fingerprint"))[:12]
    origin = f"{one['kind']} {one.get('fingerprint', '')[:12]} was made from {base}"
    present = f"{other['kind']} is {str(other.get('fingerprint'))[:12]}"
    return {"fits": False, "why": f"neither has the other's fingerprint: {origin}, {present}"}
