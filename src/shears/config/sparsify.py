"""How to prune."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from shears.config.fields import Device, Dtype, Names, Pattern, Seed, Shares, Size, StageConfig
from shears.config.notation import kept_of_every

Needs = Literal["nothing", "norms", "moments"]
"""Statistics of a linear's inputs: none, the L2 norm of every input feature, or the second moments X^T X."""


@dataclass(frozen=True)
class Method:
    """A pruning method: one entry of METHODS."""

    needs: Needs
    prune: str
    """Function from `Task` to `Pruned` (sparsity/methods/task.py), as `module:name`. It is imported when it is used,
    because reading a recipe must not import torch."""


METHODS: Mapping[str, Method] = {
    "wanda": Method("norms", "shears.sparsity.methods.scores:prune_by_wanda"),
    "magnitude": Method("nothing", "shears.sparsity.methods.scores:prune_by_magnitude"),
    "ria": Method("norms", "shears.sparsity.methods.scores:prune_by_ria"),
    "sparsegpt": Method("moments", "shears.sparsity.methods.sparsegpt:prune"),
    "admm": Method("moments", "shears.sparsity.methods.admm:prune"),
}
ALLOCATIONS: Mapping[str, str | None] = {
    "uniform": None,
    "owl": "shears.sparsity.allocation.owl:owl_sparsities",
    "sensitivity": "shears.sparsity.allocation.sensitivity:sensitivity_sparsities",
}
"""Functions from (CalibrationRun, Chosen, overall sparsity) to a sparsity by weight, as `module:name`; None: equal."""

if TYPE_CHECKING:
    MethodName = str
    AllocationName = str
else:
    MethodName = Literal[tuple(METHODS)]
    AllocationName = Literal[tuple(ALLOCATIONS)]


class SparsifyConfig(StageConfig):
    """How to prune: method, share, where the zeros may lie, calibration text."""

    sparsity: float = Field(0.5, ge=0.0, lt=1.0)
    """Share of the pruned linears' weights that becomes zero, over all of them together."""
    method: MethodName = "wanda"
    """Rule: wanda, magnitude and ria only drop weights; sparsegpt and admm also move the kept ones (better, slower)."""
    pattern: Pattern = "row"
    """Where weights compete: row (of a linear), layer (a linear), global (all linears; magnitude only), or N:M."""
    allocation: AllocationName = "uniform"
    """Sparsity per linear: uniform, owl (less where a block has outliers), or sensitivity (by the loss's gradient)."""
    reconstruct: bool = False
    """Fit the kept weights to the dense linear's outputs on the calibration text, the zeros left where they are."""
    calibration: str = "arithmetic:train"
    """Text the inputs are measured on: FILE.txt, rows or chats (JSON, CSV, Parquet), a hub id, or arithmetic:train."""
    num_samples: int = Field(32, gt=0)
    """Number of calibration sequences."""
    sequence_length: int = Field(512, gt=1)
    """Tokens in a calibration sequence."""
    batch_size: int = Field(4, gt=0)
    """Calibration sequences in one forward."""
    targets: Names = ()
    """Names of the linears to prune, by suffix or regex, such as q_proj,down_proj; empty for all of every block."""
    skip: Names = ()
    """Names of linears that stay dense and do not count, by suffix or regex, such as o_proj or .*layers\\.0\\..*"""
    sparsity_of: Shares = Field({})
    """Sparsity of some linears, by suffix or regex, such as down_proj=0.4; the others make up for it."""
    recover_rank: int = Field(0, ge=0)
    """Also write OUT/recovery: a LoRA adapter of this rank that gives back most of what pruning took away; 0: none."""
    recover_by: Literal["norms", "moments"] = "norms"
    """What the recovery is best for: norms of the inputs, or their full second moments (slower, better)."""
    damping: float = Field(0.01, gt=0)
    """What sparsegpt and reconstruct add to the diagonal of the inputs' second moments, as a share of its mean."""
    activation_budget: Size = "2GB"
    """Memory for hidden states between blocks; what does not fit waits on the disk."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forwards: auto is bf16 where the processor has it, else fp32. Statistics are always fp32."""
    dtype: Dtype = "auto"
    """Number format of the model on the disk; auto keeps the model's own."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps."""
    seed: Seed = 0
    """Seed of the choice of calibration sequences."""

    @property
    def measures_inputs(self) -> bool:
        """Whether pruning measures inputs once the sparsities are known."""
        return METHODS[self.method].needs != "nothing" or self.reconstruct or self.recover_rank > 0

    @property
    def needs_calibration(self) -> bool:
        """Whether pruning, or the allocation before it, looks at calibration text."""
        return self.allocation != "uniform" or self.measures_inputs

    @model_validator(mode="after")
    def _check_pattern(self) -> "SparsifyConfig":
        if self.pattern == "global" and (
            self.method != "magnitude" or self.allocation != "uniform" or self.sparsity_of
        ):
            raise ValueError(
                "pattern global needs method magnitude and says itself how sparse each linear is; use layer"
            )
        groups = kept_of_every(self.pattern)
        if groups is None:
            return self
        share = 1 - groups[0] / groups[1]
        if f"{self.sparsity:g}" != f"{share:g}" or self.allocation != "uniform" or self.sparsity_of:
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {share:g} everywhere; set sparsity={share:g} only"
            )
        return self
