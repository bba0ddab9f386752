"""What pruning did, as figures, and the check that a saved model has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shears.blockwise.matrices import block_matrices
from shears.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.checkpoints.conversion import UnsupportedCheckpoint
from shears.checkpoints.tensor_files import TensorFiles
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.load import load_model
from shears.sparsity.plan import linear_name
from shears.sparsity.recovery.adapter import Recovered


@dataclass(frozen=True)
class LinearSparsity:
    """Zeros of one linear; `shape` is (outputs, inputs), in a stack of experts with the outputs of all experts."""

    shape: tuple[int, int]
    zeros: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size


def overall_sparsity(linears: Mapping[str, LinearSparsity]) -> float:
    """Return the share of zeros over all linears together."""
    return sum(linear.zeros for linear in linears.values()) / sum(linear.size for linear in linears.values())


@dataclass(frozen=True)
class SparsityReport:
    """What pruning did: the target, the pruned linears by name, the share of block weights that were not pruned.

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
        return overall_sparsity(self.linears)


def check_saved(folder: Path, linears: Mapping[str, LinearSparsity]) -> None:
    """Raise InputError where a linear has another number of zeros in the files of `folder` than in `linears`."""
    files = TensorFiles(folder)
    names = set(files.names)
    zeros = {name: count_zeros(files.load(f"{name}.weight")) for name in linears if f"{name}.weight" in names}
    if len(zeros) < len(linears):
        zeros = _zeros_by_block(folder)  # stacks of experts, and models whose files have other names
    for name, linear in linears.items():
        if zeros.get(name) != linear.zeros:
            raise InputError(f"{name} must have {linear.zeros} zeros in {folder}, got {zeros.get(name)}; make it again")


def _zeros_by_block(folder: Path) -> dict[str, int]:
    """Return the zeros of every linear of the saved model, one block in memory at a time where it can be read so."""
    source: BlockSource
    try:
        source = StreamedModel(Skeleton.open(folder))
    except UnsupportedCheckpoint:
        source = WholeModel(load_model(folder, device="cpu"))
    zeros: dict[str, int] = {}
    for index, block in enumerate(decoder_blocks(source.model)[1]):
        in_block: dict[str, int] = {}
        with source.opened(index):
            for matrix in block_matrices(f"{source.prefix}.{index}", block):
                name = linear_name(matrix)
                in_block[name] = in_block.get(name, 0) + count_zeros(matrix.view(source.model))
        zeros |= in_block
    return zeros
