"""Packages made and read by the tests."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shears.checkpoints.package_file import ADAPTER, QUANTIZATION
from shears.checkpoints.tensor_files import TensorFiles
from shears.export.peft import export_adapter
from shears.quantization.training import GRIDS
from shears.records.artifacts import SEARCH_SPACE, SUB_ADAPTER, read_json, read_object, write_json
from shears.records.paths import ADAPTER_CONFIG
from tests.checkpoints.test_packed_layout import bits


def package(source: Path | str, output: Path, **config: Any) -> Path:
    """Write a package; without `values` it keeps the model's own numbers, which come back bit for bit."""
    own = {} if "dtype" in config or not _is_fp32(Path(source), config.get("model")) else {"dtype": "fp32"}
    return export_adapter(source, output, format="package", **own, **config)


def unpack(package: Path | str, output: Path | str) -> Path:
    """Write a package as an ordinary model folder."""
    return export_adapter(package, output, format="unpacked")


def _is_fp32(source: Path, model: str | None) -> bool:
    """Whether a model, or an adapter's base, is stored in fp32; False for an adapter with grids of int4."""
    if (source / GRIDS).is_file():
        return False
    for name, key in ((SEARCH_SPACE, "base"), (SUB_ADAPTER, "base"), (ADAPTER_CONFIG, "base_model_name_or_path")):
        if model is None and (source / name).is_file() and not (source / "config.json").is_file():
            model = read_json(source / name)[key]
    folder = Path(model or source)
    is_model = any(folder.glob("*.safetensors"))
    return is_model and all(tensor.dtype == torch.float32 for tensor in all_tensors(folder).values())


def all_tensors(folder: Path) -> dict[str, Tensor]:
    files = TensorFiles(folder)
    return {name: files.load(name) for name in files.names}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(bits(tensor), bits(other[name]))
        for name, tensor in one.items()
    )


def change_adapter(package: Path, **changes: Any) -> None:
    """Change PEFT's settings in a package's config.json."""
    config = read_object(package / "config.json")
    config[QUANTIZATION][ADAPTER] |= changes
    write_json(package / "config.json", config)
