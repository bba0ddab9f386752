"""What a teacher says of a batch, and where it comes from: a model in memory (live.py) or files.

K positions that predict a label, in the order of `losses.labelled_positions`; P rows of L tokens; H features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from shears.models.distillation import Distribution


@dataclass(frozen=True)
class Targets:
    """The distribution of the next token at K positions and, where asked for, every block's output there."""

    distribution: Distribution
    block_outputs: tuple[Float[Tensor, "K H"], ...] | None = None


@runtime_checkable
class Teacher(Protocol):
    """Gives the targets of a batch."""

    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Targets:
        """Return the targets of the wanted positions, row after row.

        `batch` is one of `training.trainer.Collator`: input_ids and labels, position_ids that restart with every
        example, `numbers` (of the examples in the training set) and, in packed rows, `examples` (of the batch).
        """
        ...
