"""The index of a package file, and the tensors that a file with this index must hold.

The index is JSON in the file's metadata. It may come from a stranger: unknown keys are refused, and sizes are bounded.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shears.checkpoints.packed.layout import FORMAT_DTYPES, PANEL, NumberFormat, mask_shape
from shears.errors import InputError

FORMAT = "shears-package"
VERSION = "1"
PADDING = "padding"  # the last tensor: a vector that a kernel reads at the last value stays inside the file
PADDING_BYTES = 64
LARGEST = 1 << 48
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Shape = Annotated[tuple[Annotated[int, Field(ge=0, lt=LARGEST)], ...], Field(max_length=8)]
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PackedEntry(_Entry):
    """A packed weight; `transposed` where the model's files hold it as inputs x outputs (Conv1D)."""

    rows: Size
    cols: Size
    values: NumberFormat
    kept: Count
    transposed: bool = False


class DenseEntry(_Entry):
    """A tensor that is not packed. `quantized`: stored as 8-bit steps and a scale a row, for 2-D tensors."""

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: Shape
    quantized: bool = False


class Index(_Entry):
    """Linears and other tensors of the model by name, tensors of the adapter by PEFT's name, and tied tensors."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    def tensors(self) -> dict[str, Spec]:
        """Return dtype and shape of every tensor of the file, the padding last."""
        specs: dict[str, Spec] = {}
        for linear, entry in self.packed.items():
            specs |= {f"packed.{linear}.{part}": spec for part, spec in packed_specs(entry).items()}
        for name, plain in self.dense.items():
            specs |= dict(_dense_specs(f"dense.{name}", plain))
        for name, plain in self.adapter.items():
            specs |= dict(_dense_specs(f"adapter.{name}", plain))
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}


def packed_specs(entry: PackedEntry) -> dict[str, Spec]:
    """Return dtype and shape of a packed weight's parts."""
    panels = -(-entry.rows // PANEL)
    specs: dict[str, Spec] = {
        "offsets": (torch.int64, (panels + 1,)),
        "values": (FORMAT_DTYPES[entry.values], (entry.kept,)),
        "masks": (torch.uint8, mask_shape(entry.rows, entry.cols, entry.values)),
    }
    return specs | ({"scales": (torch.float32, (entry.rows,))} if entry.values == "int8" else {})


def _dense_specs(name: str, entry: DenseEntry) -> Iterator[tuple[str, Spec]]:
    if entry.quantized:
        yield name, (torch.int8, entry.shape)
        yield f"{name}.scales", (torch.float32, entry.shape[:1])
    else:
        yield name, (PLAIN[entry.dtype], entry.shape)


def parse_index(text: str) -> Index:
    """Return the index; InputError where it is invalid, or its names or sizes contradict each other."""
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"its index must be valid, got {where}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"its index must be valid JSON, got {error}") from None
    _check(index)
    return index


def _check(index: Index) -> None:
    """Raise InputError where names or sizes contradict each other."""
    weights = {f"{linear}.weight" for linear in index.packed}
    if double := (weights & index.dense.keys()) | (index.tied.keys() & (weights | index.dense.keys())):
        raise InputError(f"its index must name every tensor once, {min(double)} is there twice")
    if loose := sorted(name for name, other in index.tied.items() if other not in index.dense):
        raise InputError(f"its tied tensors must name a dense tensor, {loose[0]} does not")
    for entries in (index.dense, index.adapter):
        for name, entry in entries.items():
            _check_dense(name, entry)
    if len(index.tensors()) != 1 + _count(index):
        raise InputError("its index must give every tensor a name of its own, two tensors share one")
    for linear, packed in index.packed.items():
        if packed.kept > packed.rows * packed.cols:
            raise InputError(f"its index must keep at most all weights of {linear}, it keeps {packed.kept}")


def _check_dense(name: str, entry: DenseEntry) -> None:
    if math.prod(max(size, 1) for size in entry.shape) >= LARGEST:
        raise InputError(f"its index must name tensors of fewer than {LARGEST} numbers, {name} has more")
    if entry.quantized and (len(entry.shape) != 2 or entry.dtype not in {"fp32", "bf16", "fp16"}):
        raise InputError(f"its quantized tensors must be matrices of numbers, {name} is not")


def _count(index: Index) -> int:
    plain: list[Mapping[str, DenseEntry]] = [index.dense, index.adapter]
    packed = sum(len(packed_specs(entry)) for entry in index.packed.values())
    return packed + sum(1 + entry.quantized for table in plain for entry in table.values())
