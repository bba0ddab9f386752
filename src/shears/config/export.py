"""Which sub-adapter to write, and in what form."""

from typing import Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Seed, StageConfig


class ExportConfig(StageConfig):
    """Which sub-adapter to write, and in what form."""

    ranks: str | None = None
    """heuristic, maximal, minimal, a RESULT.json of search (RESULT.json:N: the Nth evaluated) or a RANKS.json
    {group: rank}; by default the searched one in a run, else heuristic."""
    format: Literal["peft", "padded", "merged", "merged-sparse", "package"] = "peft"
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
            if self.format != "package" and given != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of packages, got {given} with format {self.format}; add --format package")
        return self

    @property
    def merges(self) -> bool:
        """Whether the format is a whole model, not an adapter."""
        return self.format in ("merged", "merged-sparse")
