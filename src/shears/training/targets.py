"""What a teacher says of a batch, and where it comes from: a model in memory (live.py) or files.

K positions that predict a label, in the order of `losses.labelled_positions`; P rows of L tokens.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from shears.training.distillation import Distribution


@runtime_checkable
class Teacher(Protocol):
    """Gives the targets of a batch: the distribution of the next token at K positions."""

    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Distribution:
        """Return the targets of the wanted positions, row after row.

        `batch` is one of `training.trainer.Collator`: input_ids and labels, position_ids that restart with every
        example, `numbers` (of the examples in the training set) and, in packed rows, `examples` (of the batch).
        """
        ...
