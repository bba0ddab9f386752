"""The index of a package file: its tensors, their number formats and their bytes.

The index is JSON in the metadata of the file (docs/package-format.md). It may come from a stranger,
so unknown keys are refused and sizes are bounded.
"""

import math
import re
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix
from shears.checkpoints.tensor_format import Spec, file_bytes
from shears.errors import InputError
from shears.quantization import grid

FORMAT = "shears-package"
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; of the first tensor
PADDING = "padding"  # the last tensor: a kernel's vector reads beyond the last value
PADDING_BYTES = 64
MAX_NUMBERS = 1 << 48  # of a tensor
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=MAX_NUMBERS)]
TableFormat = Literal[False, "int8", "int4"]  # of embeddings and head; False: not quantized
Shape = Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_NUMBERS)], ...], Field(max_length=8)]
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
IN_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight$")
ROUTERS = {"router", "shared_expert_gate"}  # they choose experts, as modules named `gate` do


def is_block_matrix(name: str, spec: Spec) -> bool:
    """Return whether a tensor may be packed: a matrix of a decoder block that is no router."""
    match = IN_BLOCK.search(name)
    dtype, shape = spec
    plain = len(shape) == 2 and dtype.is_floating_point and dtype.itemsize <= 4 and math.prod(shape) > 0
    if match is None or not plain:
        return False
    path = match["path"].split(".")
    return path[-1] != "gate" and ROUTERS.isdisjoint(path)


def same_name(linear: str, module: str) -> bool:
    """Return whether a linear of the files is that module; files may omit the first part."""
    return module == linear or module.endswith(f".{linear}")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PackedEntry(_Entry):
    """A packed weight; `transposed` if the model's files hold it as inputs x outputs (Conv1D).

    Without `kept` it has no masks.
    """

    rows: Size
    cols: Size
    values: NumberFormat
    kept: Count | None = None
    bytes: Count | None = None  # of int4 with masks: size of `values`; a group begins with a new byte
    transposed: bool = False

    @property
    def num_values(self) -> int:
        """Number of elements of the tensor `values`."""
        if self.kept is None:
            return layout.num_whole(self.rows, self.cols, self.values)
        return self.kept if self.bytes is None else self.bytes

    @classmethod
    def of(cls, matrix: PackedMatrix) -> "PackedEntry":
        """Return the entry of a packed weight."""
        kept = None if matrix.masks is None else matrix.num_kept
        size = None if kept is None or matrix.values_dtype != "int4" else matrix.values.numel()
        return cls(rows=matrix.rows, cols=matrix.cols, values=matrix.values_dtype, kept=kept, bytes=size)


class DenseEntry(_Entry):
    """A tensor that is not packed.

    `quantized`, for 2-D tensors: stored as int8 with a scale a row, or as int4 with a scale and a
    zero point for each block of a row. A version 1 file says true for int8.
    """

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: Shape
    quantized: TableFormat = False

    @field_validator("quantized", mode="before")
    @classmethod
    def _of_version(cls, value: object, info: Any) -> object:
        known = bool if info.context == "1" else bool | str
        if not isinstance(value, known):  # a literal False also takes 0 and 0.0
            raise ValueError(  # noqa: TRY004  (pydantic reports a ValueError)
                "Input should be true or false" if known is bool else "Input should be false, 'int8' or 'int4'"
            )
        return "int8" if value is True and info.context == "1" else value

    @field_serializer("quantized")
    def _in_version(self, value: TableFormat, info: Any) -> TableFormat | bool:
        return bool(value) if info.context == "1" else value


class Index(_Entry):
    """The packed linears, the other tensors and the tied ones by name; the adapter by PEFT's names."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    @property
    def version(self) -> str:
        """The lowest version of the format that has everything that the index names."""
        if any(entry.kept is None for entry in self.packed.values()):
            return "3"
        of_packed = (entry.values for entry in self.packed.values())
        of_plain = (entry.quantized for entry in self.plain().values())
        return "2" if "int4" in {*of_packed, *of_plain} else "1"

    def text(self) -> str:
        """Return the index as JSON, as a file of its version holds it."""
        return self.model_dump_json(exclude_none=True, context=self.version)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a file before its fingerprint is known."""
        return {"format": FORMAT, "version": self.version, "fingerprint": NO_FINGERPRINT, "index": self.text()}

    @property
    def file_bytes(self) -> int:
        """The size of the package file that has this index, header included."""
        return file_bytes(self.tensors(), self.metadata(), ALIGNMENT)

    def plain(self) -> dict[str, DenseEntry]:
        """Return the tensors of model and adapter that are not packed, by their names in the file."""
        of_model = {f"dense.{name}": entry for name, entry in self.dense.items()}
        return of_model | {f"adapter.{name}": entry for name, entry in self.adapter.items()}

    def tensors(self) -> dict[str, Spec]:
        """Return dtype and shape of every tensor of the file, the padding last."""
        specs: dict[str, Spec] = {}
        for linear, entry in self.packed.items():
            specs |= {f"packed.{linear}.{part}": spec for part, spec in packed_specs(entry).items()}
        for name, plain in self.plain().items():
            specs |= {f"{name}{part}": spec for part, spec in _dense_specs(plain).items()}
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}


def packed_specs(entry: PackedEntry) -> dict[str, Spec]:
    """Return dtype and shape of a packed weight's parts."""
    panels = math.ceil(entry.rows / layout.PANEL)
    blocks = math.ceil(entry.cols / grid.BLOCK)
    specs: dict[str, Spec] = {"values": (layout.FORMAT_DTYPES[entry.values], (entry.num_values,))}
    if entry.kept is not None:
        specs["offsets"] = (torch.int64, (panels + 1,))
        specs["masks"] = (torch.uint8, layout.mask_shape(entry.rows, entry.cols, entry.values))
    if entry.values == "int8":
        specs["scales"] = (torch.float32, (entry.rows,))
    elif entry.values == "int4":
        specs["scales"] = (torch.float16, (panels, blocks, layout.PANEL))
        specs["zeros"] = (torch.uint8, (panels, blocks, layout.PANEL // 2))
    return specs


def _dense_specs(entry: DenseEntry) -> dict[str, Spec]:
    """Return dtype and shape of a tensor, its scales and zero points, by the ends of their names."""
    if not entry.quantized:
        return {"": (PLAIN[entry.dtype], entry.shape)}
    rows, cols = entry.shape
    if entry.quantized == "int8":
        return {"": (torch.int8, entry.shape), ".scales": (torch.float32, (rows,))}
    blocks = grid.block_shape(rows, cols)
    return {
        "": (torch.uint8, (rows, math.ceil(cols / 2))),
        ".scales": (torch.float16, blocks),
        ".zeros": (torch.uint8, blocks),
    }


def parse_index(text: str, version: str) -> Index:
    """Return the index of a file of that version.

    InputError where it is invalid, needs a newer version, or its names or sizes contradict each
    other.
    """
    try:
        index = Index.model_validate_json(text, context=version)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"its index must be valid, got {where}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"its index must be valid JSON, got {error}") from None
    if index.version > version:
        raise InputError(f"a file with such an index must be version {index.version}, it is version {version}")
    _check(index)
    return index


def _check(index: Index) -> None:
    """Raise InputError where names or sizes contradict each other."""
    weights = {f"{linear}.weight" for linear in index.packed}
    if double := (weights & index.dense.keys()) | (index.tied.keys() & (weights | index.dense.keys())):
        raise InputError(f"its index must name every tensor once, {min(double)} is there twice")
    if loose := sorted(name for name, other in index.tied.items() if other not in index.dense):
        raise InputError(f"its tied tensors must name a dense tensor, {loose[0]} does not")
    for name, entry in [*index.dense.items(), *index.adapter.items()]:
        _check_dense(name, entry)
    num_parts = sum(len(packed_specs(entry)) for entry in index.packed.values())
    num_plain = sum(len(_dense_specs(entry)) for entry in [*index.dense.values(), *index.adapter.values()])
    if len(index.tensors()) != num_parts + num_plain + 1:  # the padding
        raise InputError("its index must give every tensor a name of its own, two tensors share one")
    for linear, packed in index.packed.items():
        _check_packed(linear, packed)


def _check_packed(linear: str, entry: PackedEntry) -> None:
    if entry.kept is None:
        if entry.values not in layout.QUANTIZED or entry.bytes is not None:
            raise InputError(f"its index must give the kept weights of {linear}, it gives none")
        return
    if entry.kept > entry.rows * entry.cols:
        raise InputError(f"its index must keep at most all weights of {linear}, it keeps {entry.kept}")
    if (entry.bytes is None) != (entry.values != "int4"):
        raise InputError(f"its index must give bytes for int4 values and for no others, {linear} is {entry.values}")
    if entry.bytes is not None and not (entry.kept + 1) // 2 <= entry.bytes <= entry.kept:
        raise InputError(f"its index must give the bytes of {entry.kept} nibbles of {linear}, it gives {entry.bytes}")


def _check_dense(name: str, entry: DenseEntry) -> None:
    if math.prod(max(size, 1) for size in entry.shape) >= MAX_NUMBERS:
        raise InputError(f"its index must name tensors of fewer than {MAX_NUMBERS} numbers, {name} has more")
    if entry.quantized and (len(entry.shape) != 2 or entry.dtype not in {"fp32", "bf16", "fp16"}):
        raise InputError(f"its quantized tensors must be matrices of numbers, {name} is not")
