"""Options of `shears export`: which sub-adapter to write, and in what format."""

from typing import Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Seed, StageConfig

FormatName = Literal["peft", "padded", "merged", "merged-sparse", "package"]
PACKAGE_ONLY = ("values", "embeddings", "negative_zeros")  # options of format package


class ExportConfig(StageConfig):
    """Which sub-adapter to write, and in what format."""

    ranks: str | None = None
    """Ranks to keep: heuristic (the middle one of every group), maximal, minimal, RESULT.json (what search chose),
    RESULT.json:N (the Nth configuration it evaluated) or RANKS.json ({group: rank}); default: what search chose where
    a run has a search, else heuristic."""
    format: FormatName = "peft"
    """peft: an adapter whose tensors have their own ranks; padded: an adapter whose tensors all have the largest
    rank, filled up with zeros (for llama.cpp); merged: one model, in which the base's zeros are lost; merged-sparse:
    one model that keeps every zero; package: sparse model and adapter in one packed file, smaller and faster on a
    CPU."""
    values: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """For a package: number format of the nonzero weights; auto: the model's own, but bf16 for an fp16 model."""
    embeddings: Literal["keep", "int8"] = "keep"
    """For a package: keep embeddings and output head as they are, or quantize them to 8 bits with one scale per row."""
    negative_zeros: Literal["keep", "drop"] = "keep"
    """For a package: keep weights of -0.0 (a mask applied by multiplication leaves them), or drop them as zeros."""
    calibration: str | None = None
    """Text on which merged-sparse fits an adapter trained without sparse_adapter; default: its training data."""
    num_samples: int = Field(32, gt=0)
    """Number of calibration sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens in a calibration sequence."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Random seed that chooses the calibration sequences."""

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        for name in PACKAGE_ONLY:
            value = getattr(self, name)
            if self.format != "package" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} needs format package, got {value} with format {self.format}; add --format package"
                )
        return self

    @property
    def merges(self) -> bool:
        """Whether the format is a whole model, not an adapter."""
        return self.format in ("merged", "merged-sparse")
