"""Which sub-adapter to write, and in what format."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Seed, StageConfig


@dataclass(frozen=True)
class ExportFormat:
    """An export format: one entry of FORMATS holds everything that stages, records, cards and reports know of it."""

    holds: Literal["adapter", "model", "package"]
    """Contents of the folder: an adapter, which needs its base model; an ordinary model folder; a package."""
    called: str
    """What `shears inspect` and messages call the folder."""
    folder: str
    """Name of the folder in a run."""
    record: str
    """Name of the record in the folder."""
    title: str
    """Title of the model card; {} is the base model's name."""
    writer: str
    """Function that writes the folder, as `module:name`. It is imported when it is called, because reading a recipe or
    a record must not import torch."""
    pads: bool = False
    """Whether every tensor of the adapter has the largest rank."""

    @property
    def is_model(self) -> bool:
        """Whether the folder is a model by itself, which needs no base model."""
        return self.holds != "adapter"


_PEFT = ExportFormat(
    holds="adapter",
    called="sub-adapter",
    folder="sub_adapter",
    record="sub_adapter.json",
    title="LoRA adapter for {}",
    writer="shears.export.peft:write_peft",
)
_MERGED = ExportFormat(
    holds="model",
    called="merged model",
    folder="merged",
    record="merged.json",
    title="{}, merged",
    writer="shears.export.merge:write_merged",
)
_PACKAGE = ExportFormat(
    holds="package",
    called="package",
    folder="package",
    record="package.json",
    title="{}, packed",
    writer="shears.export.package:write_package",
)
FORMATS: Mapping[str, ExportFormat] = {
    "peft": _PEFT,
    "padded": replace(_PEFT, writer="shears.export.peft:write_padded", pads=True),
    "merged": _MERGED,
    "merged-sparse": replace(_MERGED, writer="shears.export.merge:write_merged_sparse"),
    "package": _PACKAGE,
}
"""Every export format by name. `writer` is called with (source, work, model, settings) and returns the record."""
FORMAT_OF_RECORD: Mapping[str, ExportFormat] = {form.record: form for form in FORMATS.values()}
"""One of the formats that write a record, by the record's file name; all of them write the same kind of folder."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


class ExportConfig(StageConfig):
    """Which sub-adapter to write, and in what format."""

    ranks: str | None = None
    """heuristic, maximal, minimal, a RESULT.json of search (RESULT.json:N: the Nth evaluated) or a RANKS.json
    {group: rank}; by default the searched one in a run, else heuristic."""
    format: FormatName = "peft"
    """peft: an adapter, each tensor at its own rank; padded: all at the largest rank, zeros beyond (for llama.cpp);
    merged: one model, which loses its zeros; merged-sparse: one model that keeps every zero; package: sparse model
    and adapter in one packed file, smaller and faster on a CPU."""
    values: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of a package, the number format of kept weights; auto is the model's own, bf16 for an fp16 model."""
    embeddings: Literal["keep", "int8"] = "keep"
    """Of a package, embeddings and head: keep them as they are, or in 8 bits with a scale a row."""
    negative_zeros: Literal["keep", "drop"] = "keep"
    """Of a package, weights of -0.0, which masks leave that are multiplied: keep every bit, or drop them as zeros."""
    calibration: str | None = None
    """Text on which merged-sparse fits an adapter trained without sparse_adapter; by default its training data."""
    num_samples: int = Field(32, gt=0)
    """Number of calibration sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens in a calibration sequence."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Seed of the choice of calibration sequences."""

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        for name in ("values", "embeddings", "negative_zeros"):
            given = getattr(self, name)
            if FORMATS[self.format].holds != "package" and given != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of packages, got {given} with format {self.format}; add --format package")
        return self
