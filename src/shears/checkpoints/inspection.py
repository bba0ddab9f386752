"""Describe a folder or file; counts come from the tensors themselves, not from records."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, GGUFValueType
from safetensors import safe_open

from shears.checkpoints.package_file import read_package
from shears.checkpoints.tensor_files import quantized_by
from shears.checkpoints.zeros import EXPERTS, count_zeros, place_in_block, sparsities
from shears.config.export_options import FORMAT_OF_RECORD
from shears.errors import InputError, reading
from shears.quantization.training import GRIDS
from shears.records import artifacts

MERGED = (name for name, form in FORMAT_OF_RECORD.items() if form.holds in ("model", "unpacked"))
MODELS = (artifacts.SPARSITY, artifacts.HEALED, *MERGED)  # records of models
ADAPTERS = (artifacts.SEARCH_SPACE, artifacts.SUB_ADAPTER, artifacts.RECOVERY)  # adapters' records
FILES = {artifacts.RESULT: "search", artifacts.EVALUATION: "run"}  # only the file is shown
MARKERS = (
    artifacts.PACKAGE, artifacts.GGUF, artifacts.RESULT, *ADAPTERS, "config.json", artifacts.EVALUATION
)  # fmt: skip
"""The first of these files in a folder says what the folder is."""
ADAPTED = ("super_adapter_fingerprint", "sub_adapter_fingerprint")  # keys of what has an adapter
OF_MODEL = ("base_fingerprint", "calibration_fingerprint", *ADAPTED, "config")
OF_PACKAGE = ("values", "num_linears", "bytes", "ratio", "ranks")
GGUF_FACTS = {
    "name": "general.name",
    "blocks": "{}.block_count",
    "width": "{}.embedding_length",
    "heads": "{}.attention.head_count",
    "context": "{}.context_length",
    "tokenizer": "tokenizer.ggml.model",
    "pre_tokenizer": "tokenizer.ggml.pre",
}
"""What `inspect` tells of a GGUF file, by the key of its metadata; {} is the architecture."""


def inspect(path: str | Path) -> dict[str, Any]:
    """Return the kind, counts, sizes and fingerprints of an artifact as plain data."""
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    if path.is_file() and path.suffix == ".json":
        return {"kind": "file", "path": str(path), **artifacts.read_object(path)}
    marker = next((name for name in MARKERS if (path / name).is_file()), None)
    if marker is None:
        raise InputError(f"{path} must be a model, an artifact of shears, a JSON or a .gguf file (rows: shears data)")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    with reading(path):
        return {"path": str(path), **_folder(path, marker), "size_bytes": size}


def _folder(folder: Path, marker: str) -> dict[str, Any]:
    if marker in FILES:
        return {"kind": FILES[marker], **artifacts.read_object(folder / marker)}
    if marker == artifacts.GGUF:
        record = artifacts.read_object(folder / marker)
        return {**_gguf(folder / artifacts.GGUF_FILE), "kind": artifacts.KINDS[marker], **_chosen(record, OF_MODEL)}
    if marker in ADAPTERS:
        counts = [(tensor.numel(), count_zeros(tensor)) for _, tensor in _stored(folder)]
        parameters = sum(size for size, _ in counts)
        return {
            "kind": artifacts.KINDS[marker],
            "parameters": parameters,
            "nonzeros": parameters - sum(zeros for _, zeros in counts),
            **artifacts.read_object(folder / marker),
            "fingerprint": artifacts.weights_fingerprint(folder),
        }
    if marker == artifacts.PACKAGE:
        record = artifacts.read_record(folder, marker, "bytes", "ratio", "base_fingerprint", "config")
        package = read_package(folder)
        tensors = (pair for pair in package.model_tensors() if pair[0] not in package.index.tied)
        return {
            **_model(folder, record, tensors),
            "kind": "package",
            "adapter_parameters": sum(tensor.numel() for tensor in package.adapter().values()),
            **_chosen(record, OF_PACKAGE),
            **{f"bytes_{name}": size for name, size in record["bytes"].items()},
            **{f"size_of_dense_{name}": ratio for name, ratio in record["ratio"].items()},
        }
    name = next((name for name in MODELS if (folder / name).is_file()), "")
    record = artifacts.read_object(folder / name) if name else {}
    return {"kind": artifacts.KINDS.get(name, "model"), **_model(folder, record, _stored(folder))}


def _chosen(record: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: record[key] for key in keys if record.get(key) is not None}


def _stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(path for path in folder.glob("*.safetensors") if path.name != GRIDS):
        with reading(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, opened.get_tensor(name)


def _model(folder: Path, record: Mapping[str, Any], tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Any]:
    parameters = 0
    nonzeros = 0
    lists = defaultdict[str, dict[tuple[int, str], tuple[int, int]]](dict)  # decoder, image blocks
    for name, tensor in tensors:
        zeros_here = count_zeros(tensor)
        parameters += tensor.numel()
        nonzeros += tensor.numel() - zeros_here
        place = place_in_block(name)
        stacked = EXPERTS in name.split(".") and tensor.ndim == 3 and tensor.is_floating_point()
        if place is not None and (stacked or (name.endswith(".weight") and tensor.ndim >= 2)):
            counts = lists[f".{name}".partition(f".{place[0]}.")[0]]
            weights, zeros = counts.get(place, (0, 0))
            counts[place] = (weights + tensor.numel(), zeros + zeros_here)
    largest = max(lists.values(), key=lambda one: sum(size for size, _ in one.values()), default={})
    return {
        "parameters": parameters,
        "nonzeros": nonzeros,
        **sparsities(largest),
        **({"quantized": quantized} if (quantized := quantized_by(folder)) else {}),
        "fingerprint": artifacts.weights_fingerprint(folder),
        **_chosen(record, OF_MODEL),
    }


def _gguf(path: Path) -> dict[str, Any]:
    with reading(path):
        reader = GGUFReader(path)
        arch = str(reader.fields["general.architecture"].contents())
        fields = {name: reader.fields.get(key.format(arch)) for name, key in GGUF_FACTS.items()}
        types = defaultdict[str, Counter[str]](Counter)
        for each in reader.tensors:
            counts = {"tensors": 1, "parameters": int(each.n_elements), "bytes": int(each.n_bytes)}
            types[each.tensor_type.name].update(counts)
    parameters = sum(one["parameters"] for one in types.values())
    return {
        "path": str(path),
        "kind": "GGUF file",
        "architecture": arch,
        **{name: each.contents() for name, each in fields.items() if each and each.types[0] != GGUFValueType.ARRAY},
        "chat_template": "tokenizer.chat_template" in reader.fields,
        "parameters": parameters,
        "tensors": len(reader.tensors),
        "types": {name: dict(counts) for name, counts in sorted(types.items(), key=lambda item: -item[1]["bytes"])},
        "bits_per_parameter": 8 * sum(one["bytes"] for one in types.values()) / max(parameters, 1),
        "size_bytes": path.stat().st_size,
    }
