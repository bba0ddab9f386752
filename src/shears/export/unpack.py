"""Unpacking: a package becomes an ordinary model folder and an ordinary PEFT adapter."""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
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
SHARD = 5_000_000_000  # bytes of a file; transformers writes 50 GB, but hubs prefer smaller files
CONFIG_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_PACKAGE = ("base", "base_fingerprint", "values", TRAINED_BEFORE)  # keys that the model's record repeats
OF_ADAPTER = (
    "shears_version",
    "config",
    "super_adapter_fingerprint",
    "ranks_fingerprint",
    "template",
    "data",
    "data_sha256",
    "alpha",
    "sparse_adapter",
    "max_rank",
    "ranks",
)  # keys that the adapter's record repeats
Specs = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def unpack(package: str | Path, output: str | Path) -> Path:
    """Write `output`/model, an ordinary model folder, and `output`/adapter where the package has one; return `output`.

    fp32 and bf16 values come out bit for bit as they were packed, int8 values as the nearest numbers of the model's
    dtype. Each folder gets a record and a card. InputError for a folder that is no whole package.
    """
    folder = Path(package)
    output = expanded(output)
    record = read_record(folder, PACKAGE)
    opened = read_package(folder, verify="fingerprint" not in record)  # the fingerprint covers every byte
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
    """Write the model's record and card; without an adapter beside it, the record names the one merged into it."""
    keys = OF_PACKAGE if has_adapter else (*OF_PACKAGE, *OF_MERGED)
    kept = {key: record[key] for key in keys if key in record}
    write_json(model / UNPACKED, {"shears_version": __version__, **kept, "fingerprint": weights_fingerprint(model)})
    write_card(model)


def model_dtypes(package: Package, quantized: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor of the model; packed int8 values become `quantized`."""
    index = package.index
    packed = {f"{linear}.weight": FORMAT_DTYPES[entry.values] for linear, entry in index.packed.items()}
    plain = {name: PLAIN[index.dense[index.tied.get(name, name)].dtype] for name in [*index.dense, *index.tied]}
    unpacked = {name: quantized if dtype == torch.int8 else dtype for name, dtype in packed.items()}
    return unpacked | plain


def write_shards(folder: Path, specs: Specs, tensors: Iterable[tuple[str, Tensor]], size: int = SHARD) -> None:
    """Write tensors, in the order of `specs`, to files of at most `size` bytes; a larger tensor gets its own file."""
    split = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda spec: math.prod(spec[1]) * spec[0].itemsize,
        filename_pattern=SINGLE.replace(".", "{suffix}."),
        max_shard_size=size,
    )
    places: dict[str, StoredTensor] = {}
    for file, names in split.filename_to_tensors.items():
        layout = write_layout(folder / file, {name: specs[name] for name in names}, {"format": "pt"})
        places |= zip(names, layout, strict=True)
    for name, tensor in tensors:
        with places[name].path.open("r+b", buffering=0) as stream:
            write_at(stream, places[name].offset, as_bytes(tensor.contiguous()))
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _write_adapter(package: Package, work: Path, record: Mapping[str, Any]) -> None:
    """Write the PEFT adapter; one of shears gets the record of a sub-adapter and a card."""
    adapter = work / "adapter"
    adapter.mkdir()
    save_file(package.adapter(), adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(package.adapter_config_file(), adapter / ADAPTER_CONFIG)
    if "ranks" in record:
        kept = {key: record[key] for key in OF_ADAPTER if key in record}
        kept["base"] = "model"
        kept["base_fingerprint"] = weights_fingerprint(work / "model")
        kept["fingerprint"] = weights_fingerprint(adapter)
        write_json(adapter / SUB_ADAPTER, kept)
        write_card(adapter)
