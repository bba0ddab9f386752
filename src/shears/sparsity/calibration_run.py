"""A model and the calibration batches that pruning, and the allocation before it, send through its blocks."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from shears.blockwise.activations import Activations
from shears.blockwise.sources import BlockSource
from shears.blockwise.walk import Batches, Walk
from shears.config import SparsifyConfig
from shears.config.notation import num_bytes
from shears.models.devices import autocast


@dataclass(frozen=True)
class CalibrationRun:
    """A model, calibration batches, and the settings of their forwards; hidden states beyond the budget go to `folder`.

    Methods that look at weights alone need no batches.
    """

    source: BlockSource
    batches: Batches
    config: SparsifyConfig
    folder: Path | None = None

    @property
    def budget(self) -> int:
        """Bytes of memory for hidden states."""
        return num_bytes(self.config.activation_budget)

    def activations(self, parts: int = 1) -> Activations:
        """Return an empty store of hidden states that may use a part of the budget: a half for 2."""
        return Activations(self.budget // parts, self.folder)

    def context(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forwards."""
        return autocast(self.config.precision, self.source.device)

    def walk(self, hidden: Activations, batches: Batches | None = None) -> Walk:
        """Return a walk of the batches through the blocks, which keeps hidden states in `hidden`."""
        return Walk(self.source, self.batches if batches is None else batches, hidden, self.context)
