"""A package back as ordinary folders: the model as safetensors shards, the adapter as PEFT reads it."""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shears.checkpoints.packed.file import Package, read_package
from shears.checkpoints.packed.index import PLAIN
from shears.checkpoints.packed.layout import FORMAT_DTYPES
from shears.checkpoints.tensor_files import INDEX, SINGLE
from shears.checkpoints.tensor_format import StoredTensor, as_bytes, write_at, write_layout
from shears.export.package import OF_MERGED
from shears.models.load import save_tokenizer
from shears.records.artifacts import (
    PACKAGE,
    SUB_ADAPTER,
    TRAINED_BEFORE,
    UNPACKED,
    read_object,
    read_record,
    weights_fingerprint,
    write_json,
)
from shears.records.cards.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__

logger = logging.getLogger(__name__)
SHARD = 5_000_000_000  # bytes; transformers' own choice is 50 GB, hubs like less
CONFIG_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_ADAPTER = ("shears_version", "config", "super_adapter_fingerprint", "ranks_fingerprint", "template", "data",
              "data_sha256", "alpha", "sparse_adapter", "max_rank", "ranks")  # fmt: skip
OF_PACKAGE = ("base", "base_fingerprint", "values", TRAINED_BEFORE)
Specs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def unpack(package: str | Path, output: str | Path) -> Path:
    """Write `output`/model, an ordinary model folder, and `output`/adapter where the package has one; return `output`.

    Bit for bit what was packed where the values are fp32 or bf16; of int8 the nearest numbers of the model's dtype.
    InputError for what is no whole package. Each folder has a record of what it is, and a card.
    """
    folder, output = Path(package), expanded(output)
    record = read_record(folder, PACKAGE)
    opened = read_package(folder, verify="fingerprint" not in record)
    with working_folder(output, {"package": str(folder)}, resume=None) as work:
        _write_model(opened, folder, work / "model")
        _write_record(work / "model", record, has_adapter=bool(opened.index.adapter))
        if opened.index.adapter:
            _write_adapter(opened, work, record)
    logger.info("unpacked %s into %s", folder, output)
    return output


def _write_model(package: Package, folder: Path, output: Path) -> None:
    output.mkdir()
    config = read_object(folder / "config.json")
    dtypes = model_dtypes(package, CONFIG_DTYPES.get(str(config.get("dtype")), torch.bfloat16))
    tensors = ((name, tensor.to(dtypes[name])) for name, tensor in package.model_tensors())
    shapes = {name: (dtypes[name], shape) for name, shape in package.model_shapes().items()}
    write_shards(output, shapes, tensors)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    save_tokenizer(folder, output)


def _write_record(model: Path, record: Mapping[str, Any], has_adapter: bool) -> None:
    """Write the model's record and card; what a package tells of an adapter is of the model where that was merged."""
    keys = OF_PACKAGE if has_adapter else (*OF_PACKAGE, *OF_MERGED)
    kept = {key: record[key] for key in keys if key in record}
    write_json(model / UNPACKED, {"shears_version": __version__, **kept, "fingerprint": weights_fingerprint(model)})
    write_card(model)


def model_dtypes(package: Package, quantized: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor of the model; `quantized` for packed int8, which has none of its own."""
    index = package.index
    packed = {f"{linear}.weight": FORMAT_DTYPES[entry.values] for linear, entry in index.packed.items()}
    plain = {name: PLAIN[index.dense[index.tied.get(name, name)].dtype] for name in [*index.dense, *index.tied]}
    return {name: quantized if dtype == torch.int8 and name in packed else dtype
            for name, dtype in (packed | plain).items()}  # fmt: skip


def write_shards(folder: Path, specs: Specs, tensors: Iterable[tuple[str, Tensor]], size: int = SHARD) -> None:
    """Write tensors, which come one at a time in the order of `specs`, in files of at most `size` bytes (but one)."""
    shards = _split(specs, size)
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    places: dict[str, StoredTensor] = {}
    for file, shard in zip(names, shards, strict=True):
        chosen = {name: specs[name] for name in shard}
        places |= zip(chosen, write_layout(folder / file, chosen, {"format": "pt"}), strict=True)
    for name, tensor in tensors:
        with places[name].path.open("r+b", buffering=0) as file_:
            write_at(file_, places[name].offset, as_bytes(tensor.contiguous()))
    if len(names) > 1:
        total = sum(place.num_bytes for place in places.values())
        files = {name: place.path.name for name, place in places.items()}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _split(specs: Specs, size: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in specs.items():
        count = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + count > size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += count
    return shards


def _write_adapter(package: Package, work: Path, record: Mapping[str, Any]) -> None:
    """Write the PEFT adapter, with the record of a sub-adapter where the package was made of ours."""
    adapter = work / "adapter"
    adapter.mkdir()
    save_file(package.adapter(), adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(package.adapter_config_file(), adapter / ADAPTER_CONFIG)
    if "ranks" in record:
        kept = {key: record[key] for key in OF_ADAPTER if key in record}
        prints = {"base_fingerprint": weights_fingerprint(work / "model"), "fingerprint": weights_fingerprint(adapter)}
        write_json(adapter / SUB_ADAPTER, {**kept, "base": "model", **prints})
        write_card(adapter)
