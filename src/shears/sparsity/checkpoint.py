"""The checkpoint of a pruning: a killed one continues after its last saved block, to the same bits.

A block's weights are in the output files when it is saved. What the blocks after it need beside
them are the hidden states, which go into a folder of their own, and the decisions and figures so far.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.errors import InputError, reading
from shears.models.activations import Activations
from shears.records.artifacts import read_object, sync_path, sync_tree, write_json
from shears.records.folders import CHECKPOINTS, CONFIG, LOCK

SECONDS = 60.0  # of work that a kill may cost: gigabytes of hidden states are not written after every fast block
STATE = "state.json"
TENSORS = "tensors.safetensors"


class Checkpoint:
    """The last saved state of the pruning that works in a folder; empty at its beginning."""

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.state: dict[str, Any] = {}
        self.done = 0
        self._folder = work / CHECKPOINTS
        self._origin = origin
        self._saved = time.monotonic()
        whole = [path for path in self._folder.glob("*") if path.name.isdecimal()]
        self._last = max(whole, key=lambda folder: int(folder.name), default=None)
        if self._last is not None:
            with reading(self._last / STATE):
                saved = read_object(self._last / STATE)
                if changed := [key for key, value in origin.items() if saved["origin"].get(key) != value]:
                    rule = f"an interrupted pruning must continue with the same {' and '.join(changed)}"
                    raise InputError(f"{rule}, that of {work} had another; delete it")
                self.state = saved["state"]
            self.done = int(self._last.name)
        files = work.glob("*.safetensors") if self.state.get("written") else ()
        kept = {work / CONFIG, work / LOCK, self._folder, self._last, *files}
        for path in [*work.iterdir(), *self._folder.glob("*")]:
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= SECONDS

    def save(
        self, done: int, state: Mapping[str, Any], hidden: Mapping[str, Activations], tensors: Mapping[str, Tensor]
    ) -> None:
        """Save JSON data, hidden states and tensors in place of those before; they are on the disk at the return."""
        partial = self._folder / f"{done}.partial"
        partial.mkdir(parents=True)
        for name, activations in hidden.items():
            activations.save(partial / name)
        save_file(dict(tensors), partial / TENSORS)
        write_json(partial / STATE, {"origin": self._origin, "state": state})
        sync_tree(partial)
        folder = partial.rename(self._folder / str(done))
        sync_path(self._folder)
        if self._last is not None:
            shutil.rmtree(self._last)
        self._last = folder
        self._saved = time.monotonic()

    def load(self, hidden: Mapping[str, Activations]) -> dict[str, Tensor]:
        """Put the saved hidden states in place of others; return the saved tensors."""
        assert self._last is not None
        with reading(self._last):
            for name, activations in hidden.items():
                activations.load(self._last / name)
            mapped: dict[str, Tensor] = load_file(self._last / TENSORS)
            return {name: tensor.clone() for name, tensor in mapped.items()}  # the file is deleted before they are
