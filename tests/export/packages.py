"""Packages made and read by the tests."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shears.checkpoints.tensor_files import TensorFiles
from shears.export.stage import export_adapter
from tests.checkpoints.packed.test_layout import bits


def package(source: Path | str, output: Path, **config: Any) -> Path:
    return export_adapter(source, output, format="package", **config)


def all_tensors(folder: Path) -> dict[str, Tensor]:
    files = TensorFiles(folder)
    return {name: files.load(name) for name in files.names}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(bits(tensor), bits(other[name]))
        for name, tensor in one.items()
    )
