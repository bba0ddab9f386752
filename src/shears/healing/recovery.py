"""The recovery of a sparse model while it is healed: a LoRA product that is trained too.

Shapes: O output features, I input features, R rank, * any leading dimensions.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shears.errors import InputError
from shears.healing.linears import kept_weights, power_of_two
from shears.models.recovery import read_recovery, recovery_record
from shears.models.ref import ModelRef
from shears.records.artifacts import RECOVERY_FOLDER
from shears.records.peft_files import PREFIX, A, B
from shears.sparsity.recovery import write_factors

logger = logging.getLogger(__name__)


class RecoveryProduct(nn.Module):
    """B A, whose factors are trained as float32 shares of powers of two near their sizes.

    A learning rate is then a share of their size, as it is of the kept weights' (`KeptWeights`).
    """

    def __init__(self, b: Float[Tensor, "O R"], a: Float[Tensor, "R I"]) -> None:
        super().__init__()
        self.scales = power_of_two(b.float()), power_of_two(a.float())
        self.b = nn.Parameter(b.float() / self.scales[0])
        self.a = nn.Parameter(a.float() / self.scales[1])

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.a.shape[0]

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return B A x."""
        b, a = (factor.to(x.dtype) for factor in (self.b, self.a))
        narrow = nn.functional.linear(x, a)
        return nn.functional.linear(narrow, b) * (self.scales[0] * self.scales[1])

    def factors(self) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
        """Return B and A as float32 on the CPU; the products with powers of two are exact."""
        b, a = (factor.detach().cpu() * scale for factor, scale in zip((self.b, self.a), self.scales, strict=True))
        return b, a


def recovery_fingerprint(sparse: ModelRef) -> str:
    """Return the fingerprint of the recovery; InputError if there is none for these weights."""
    if not (sparse.folder / RECOVERY_FOLDER).is_dir():
        raise InputError(
            f"recovery needs a recovery adapter, {sparse.name} has none; prune with --recover-rank 32, or leave "
            "recovery out"
        )
    return str(recovery_record(sparse)["fingerprint"])


def add_recovery(model: nn.Module, sparse: ModelRef) -> None:
    """Give linears of kept weights the product of the recovery in the folder of `sparse`.

    InputError if there is none, if it belongs to other weights, or if it has a linear that is not
    trained.
    """
    tensors = read_recovery(sparse)
    linears = kept_weights(model)
    for name in sorted(key.removeprefix(PREFIX).removesuffix(A) for key in tensors if key.endswith(A)):
        if name not in linears:
            raise InputError(f"recovery needs linears that healing trains, {name} is not one; leave recovery out")
        linear = linears[name]
        product = RecoveryProduct(tensors[PREFIX + name + B], tensors[PREFIX + name + A])
        linear.recovery = product.to(linear.weight.device)


def recovery_rank(model: nn.Module) -> int:
    """Return the largest rank of a recovery in the forward, 0 without one."""
    return max((module.rank for module in model.modules() if isinstance(module, RecoveryProduct)), default=0)


def write_healed_recovery(model: Any, work: Path, output: Path, record: dict[str, Any]) -> None:
    """Write the trained products to `work`/recovery; `work` will be named `output`."""
    linears = kept_weights(model)
    shutil.rmtree(work / RECOVERY_FOLDER, ignore_errors=True)  # of an interruption while writing
    factors = {
        name: linear.recovery.factors()
        for name, linear in linears.items()
        if isinstance(linear.recovery, RecoveryProduct)
    }
    for name, pair in factors.items():
        if not all(torch.isfinite(factor).all() for factor in pair):
            raise InputError(f"a healed recovery must be finite, that of {name} is not; lower learning_rate")
    transposed = any(linear.transposed for linear in linears.values())
    write_factors(work, output, factors, transposed=transposed, record=record)
    logger.info("the recovery was healed too: train --init recovery starts from both")
