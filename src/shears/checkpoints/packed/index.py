"""The index of a package file: its tensors, their number formats and their bytes; and what its config.json says.

The index is JSON in the metadata of the file (docs/internals/package-format.md). It may come from a stranger,
so unknown keys are refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix
from shears.checkpoints.tensor_format import Spec, file_bytes
from shears.errors import DISTRIBUTION
from shears.quantization import grid

FORMAT = "shears-package"
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; of the first tensor
PADDING = "padding"  # the last tensor: a kernel's vector reads beyond the last value
PADDING_BYTES = 64
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 48)]
TableFormat = Literal[False, "int8", "int4"]  # of embeddings and head; False: not quantized
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
IN_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight$")
ROUTERS = {"router", "shared_expert_gate"}  # they choose experts, as modules named `gate` do
METHOD = DISTRIBUTION
QUANTIZATION = "quantization_config"
WEIGHTS = "transformers_weights"
ADAPTER = "adapter_config"
REQUIRED = "package.safetensors is read by shears; shears export PACKAGE OUT --format unpacked makes a model folder"


def marked(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a model's config.json as that of its package; `adapter` are PEFT's settings.

    transformers does not know the quantization method and stops with it.
    """
    method = {"quant_method": METHOD} | ({} if adapter is None else {ADAPTER: dict(adapter)})
    return {**config, QUANTIZATION: method, WEIGHTS: REQUIRED}


def unmarked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `marked`."""
    return {key: value for key, value in config.items() if key not in (QUANTIZATION, WEIGHTS)}


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

    @model_validator(mode="after")
    def _check(self) -> "PackedEntry":
        if self.kept is None and self.values not in layout.QUANTIZED:
            raise ValueError("a weight without kept must be int8 or int4")
        if (self.bytes is not None) != (self.kept is not None and self.values == "int4"):
            raise ValueError("int4 with kept, and nothing else, must have bytes")
        return self

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

    def specs(self) -> dict[str, Spec]:
        """Return dtype and shape of the weight's parts."""
        panels = math.ceil(self.rows / layout.PANEL)
        blocks = math.ceil(self.cols / grid.BLOCK)
        specs: dict[str, Spec] = {"values": (layout.FORMAT_DTYPES[self.values], (self.num_values,))}
        if self.kept is not None:
            specs["offsets"] = (torch.int64, (panels + 1,))
            specs["masks"] = (torch.uint8, layout.mask_shape(self.rows, self.cols, self.values))
        if self.values == "int8":
            specs["scales"] = (torch.float32, (self.rows,))
        elif self.values == "int4":
            specs["scales"] = (torch.float16, (panels, blocks, layout.PANEL))
            specs["zeros"] = (torch.uint8, (panels, blocks, layout.PANEL // 2))
        return specs


class DenseEntry(_Entry):
    """A tensor that is not packed.

    `quantized`, for 2-D tensors: stored as int8 with a scale a row, or as int4 with a scale and a
    zero point for each block of a row. A version 1 file says true for int8.
    """

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: tuple[Count, ...]
    quantized: TableFormat = False

    @field_validator("quantized", mode="before")
    @classmethod
    def _of_version(cls, value: object) -> object:
        return "int8" if value is True else value

    @field_serializer("quantized")
    def _in_version(self, value: TableFormat, info: Any) -> TableFormat | bool:
        return bool(value) if info.context == "1" else value

    def specs(self) -> dict[str, Spec]:
        """Return dtype and shape of the tensor, its scales and zero points, by the ends of their names."""
        if not self.quantized:
            return {"": (PLAIN[self.dtype], self.shape)}
        rows, cols = self.shape
        if self.quantized == "int8":
            return {"": (torch.int8, self.shape), ".scales": (torch.float32, (rows,))}
        blocks = grid.block_shape(rows, cols)
        return {
            "": (torch.uint8, (rows, math.ceil(cols / 2))),
            ".scales": (torch.float16, blocks),
            ".zeros": (torch.uint8, blocks),
        }


class Index(_Entry):
    """The packed linears, the other tensors and the tied ones by name; the adapter by PEFT's names."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    @model_validator(mode="after")
    def _check(self) -> "Index":
        if loose := set(self.tied.values()) - self.dense.keys():
            raise ValueError(f"tied tensors must name a dense tensor, {min(loose)} is none")
        return self

    @property
    def version(self) -> str:
        """The lowest version of the format that has everything that the index names."""
        if any(entry.kept is None for entry in self.packed.values()):
            return "3"
        of_plain = [entry.quantized for entry in (*self.dense.values(), *self.adapter.values())]
        return "2" if "int4" in [*(entry.values for entry in self.packed.values()), *of_plain] else "1"

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a file before its fingerprint is known."""
        text = self.model_dump_json(exclude_none=True, context=self.version)
        return {"format": FORMAT, "version": self.version, "fingerprint": NO_FINGERPRINT, "index": text}

    @property
    def file_bytes(self) -> int:
        """The size of the package file that has this index, header included."""
        return file_bytes(self.tensors(), self.metadata(), ALIGNMENT)

    def tensors(self) -> dict[str, Spec]:
        """Return dtype and shape of every tensor of the file, the padding last."""
        entries: dict[str, PackedEntry | DenseEntry] = {f"packed.{name}.": each for name, each in self.packed.items()}
        entries |= {f"dense.{name}": each for name, each in self.dense.items()}
        entries |= {f"adapter.{name}": each for name, each in self.adapter.items()}
        specs = {f"{name}{part}": spec for name, each in entries.items() for part, spec in each.specs().items()}
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}
