"""Options of `shears export`: which sub-adapter to write, and in what format."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from shears.config.fields import Sampled


@dataclass(frozen=True)
class ExportFormat:
    """An export format: an entry of FORMATS is all that stages, records, cards and reports know.

    `folder` and `record` are names in a run, `title` is the model card's ({}: the base model).
    `writer` is `module:name`, imported when it is called: reading a recipe must not import torch.
    With `pads` every tensor of the adapter has the largest rank.
    """

    holds: Literal["adapter", "model", "package", "gguf", "unpacked"]
    called: str
    folder: str
    record: str
    title: str
    writer: str
    pads: bool = False

    @property
    def is_model(self) -> bool:
        """Whether the folder is a model by itself, which needs no base model."""
        return self.holds != "adapter"

    @property
    def is_packed(self) -> bool:
        """Whether one file holds the weights in its own format, with or without an adapter."""
        return self.holds in ("package", "gguf")


_PEFT = ExportFormat(
    "adapter", "sub-adapter", "sub_adapter", "sub_adapter.json", "LoRA adapter for {}", "shears.export.peft:write_peft"
)
_MERGED = ExportFormat(
    "model", "merged model", "merged", "merged.json", "{}, merged", "shears.export.merge:write_merged"
)
FORMATS: Mapping[str, ExportFormat] = {
    "peft": _PEFT,
    "padded": replace(_PEFT, pads=True),
    "merged": _MERGED,
    "merged-sparse": _MERGED,
    "package": ExportFormat(
        "package", "package", "package", "package.json", "{}, packed", "shears.export.package:write_package"
    ),
    "gguf": ExportFormat("gguf", "GGUF model", "gguf", "gguf.json", "{}, as GGUF", "shears.export.gguf:write_gguf"),
    "unpacked": ExportFormat(
        "unpacked", "unpacked model", "unpacked", "unpacked.json", "{}, unpacked",
        "shears.export.package:write_unpacked",
    ),
}  # fmt: skip
"""Every export format by name; `writer` takes (source, work, model, settings)."""
FORMAT_OF_RECORD: Mapping[str, ExportFormat] = {form.record: form for form in FORMATS.values()}
"""A format by the file name of its record; formats with one record write one kind of folder."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


class ExportConfig(Sampled):
    """Which sub-adapter to write, and in what format."""

    sub_adapter: str | None = None
    """Sub-adapter to keep: heuristic (the middle rank of each group), maximal, minimal, RESULT.json
    (what search chose), RESULT.json:N (its Nth evaluation) or RANKS.json ({group: rank})."""
    format: FormatName = "peft"
    """peft: an adapter for PEFT. padded: the same, with all tensors padded to the largest rank (for
    llama.cpp). merged: one model, which loses its zeros. merged-sparse: one model that keeps every
    zero. package: model and adapter in one small file that is fast on a CPU. gguf: one file for
    llama.cpp and Ollama. unpacked: turns a package into an ordinary model folder."""
    dtype: Literal["auto", "fp32", "bf16", "int8", "int4"] = "auto"
    """Number format in which the weights are stored in a package or a .gguf file. auto: bf16 in a
    package, F16 in a .gguf file, and int4 after a training with quantize_aware. In a .gguf file
    int8 is Q8_0 and int4 is Q4_0."""
    embedding_dtype: Literal["keep", "int8", "int4"] = "keep"
    """Number format in which the embeddings and the output head are stored; keep leaves
    them in 16 bits."""
    calibration: str | None = None
    """Text that helps to lose less accuracy: merged-sparse fits the adapter on it (default: the
    training data), and a package of int4 is rounded with it (default: none). self:FILE uses the
    model's answers to the prompts in FILE."""

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        is_set = self.dtype != "auto" or self.embedding_dtype != "keep"
        if is_set and not FORMATS[self.format].is_packed:
            raise ValueError(
                f"dtype and embedding_dtype need format package or gguf, got format {self.format}; add --format package"
            )
        if self.format == "package" and self.calibration is not None and self.dtype != "int4":
            rule = "calibration of a package needs dtype int4"
            raise ValueError(f"{rule}, got dtype {self.dtype}; add --dtype int4 or leave calibration out")
        return self
