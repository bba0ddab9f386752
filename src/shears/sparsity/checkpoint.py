"""The checkpoint of a pruning: a killed one goes on behind its last saved block, to the same bits.

A block's weights are in the output files when it is saved. What the blocks behind it need beside
them are the hidden states, which go into a folder of their own, and the decisions and figures so far.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.errors import InputError
from shears.models.blockwise.activations import Activations
from shears.records.artifacts import read_object, sync_tree, write_json
from shears.records.folders import CHECKPOINTS, CONFIG, LOCK, MARKER, clear

logger = logging.getLogger(__name__)
SECONDS = 60.0  # of work that a kill may cost: gigabytes of hidden states are not written behind every fast block
TENSORS = "tensors.safetensors"


class Checkpoint:
    """The last saved state of the pruning that works in a folder; empty at its beginning.

    `state` and `done`, a number of blocks, are what `save` was given. Files that an interrupted run
    left beside it are deleted. A `with` block deletes the checkpoint where it ends well, and without
    one all files where it is interrupted or fails. InputError if the interrupted run read other
    weights or another text than `origin` says.
    """

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.state: dict[str, Any] = {}
        self.done = 0
        self._work = work
        self._folder = work / CHECKPOINTS
        self._origin = dict(origin)
        self._last: Path | None = None
        self._saved = time.monotonic()
        whole = [path.parent for path in self._folder.glob(f"*/{MARKER}")]
        if whole:
            self._open(max(whole, key=lambda folder: int(folder.name)))
        self._tidy()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif self._last is None and issubclass(kind, InputError | OSError | KeyboardInterrupt):
            clear(self._work, {CONFIG})

    @property
    def is_due(self) -> bool:
        """Whether the work since the last save is worth another one."""
        return time.monotonic() - self._saved >= SECONDS

    @property
    def written(self) -> list[str]:
        """The tensors in the output files that are final."""
        return list(self.state.get("written", []))

    def save(
        self,
        done: int,
        state: Mapping[str, Any],
        hidden: Mapping[str, Activations] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save JSON data, hidden states and tensors in place of those before; they are on the disk at the return."""
        folder = self._folder / str(done)
        shutil.rmtree(folder, ignore_errors=True)  # a torn one
        folder.mkdir(parents=True)
        for name, activations in (hidden or {}).items():
            activations.save(folder / name)
        save_file(dict(tensors or {}), folder / TENSORS)
        sync_tree(folder)
        write_json(folder / MARKER, {"origin": self._origin, "done": done, "state": state})
        if self._last is not None:
            shutil.rmtree(self._last)
        self._last = folder
        self._saved = time.monotonic()

    def load(self, hidden: Mapping[str, Activations]) -> dict[str, Tensor]:
        """Put the saved hidden states in place of others, by name; return the saved tensors."""
        assert self._last is not None
        for name, activations in hidden.items():
            activations.load(self._last / name)
        tensors: dict[str, Tensor] = load_file(self._last / TENSORS)
        return tensors

    def _open(self, folder: Path) -> None:
        marker = read_object(folder / MARKER)
        changed = [key for key, value in self._origin.items() if marker["origin"].get(key) != value]
        if changed:
            rule = f"an interrupted pruning must go on with the same {' and '.join(changed)}"
            raise InputError(f"{rule}, that of {folder.parents[1]} had another; delete it, or choose another output")
        self.state, self.done, self._last = marker["state"], marker["done"], folder
        logger.info("%d blocks are pruned already", self.done)

    def _tidy(self) -> None:
        for path in self._work.iterdir():
            is_kept = path.name in (CONFIG, LOCK) or (self.written and path.suffix == ".safetensors")
            if path != self._folder and not is_kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._folder.glob("*"):
            if path != self._last:
                shutil.rmtree(path)
