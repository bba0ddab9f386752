"""What pruning did, as figures, and what it can give back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shears.sparsity.recovery.low_rank import Recovery


@dataclass(frozen=True)
class LinearSparsity:
    """Zeros of one linear; `shape` is (outputs, inputs), the outputs of all experts together in a stack of them."""

    shape: tuple[int, int]
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Recovered:
    """Recoveries of the pruned linears by name; `transposed` says that weights are stored inputs x outputs (Conv1D)."""

    linears: Mapping[str, Recovery]
    transposed: bool

    @property
    def rank(self) -> int:
        """Largest rank of any linear."""
        return max(recovery.rank for recovery in self.linears.values())

    @property
    def kept(self) -> float:
        """Share of the energy of all linears together that is given back."""
        total = sum(recovery.total for recovery in self.linears.values())
        return sum(float(recovery.energy.sum()) for recovery in self.linears.values()) / total if total else 1.0


@dataclass(frozen=True)
class SparsityReport:
    """What pruning did: the target, the pruned linears by name, the share of block weights it could not reach.

    `by_magnitude` names the weights (experts by number) that no calibration token reached.
    """

    target: float
    linears: Mapping[str, LinearSparsity]
    uncovered: float
    by_magnitude: Sequence[str] = ()
    recovered: Recovered | None = None

    @property
    def achieved(self) -> float:
        """Share of zeros over all pruned linears."""
        weights = sum(linear.shape[0] * linear.shape[1] for linear in self.linears.values())
        return sum(linear.zeros for linear in self.linears.values()) / weights
