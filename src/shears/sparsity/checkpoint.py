"""The checkpoint of a pruning: a killed one goes on behind its last saved block, to the same bits.

A block's weights are in the output files when it is saved. What the blocks behind it need beside
them are the hidden states, which go into a folder of their own, and the decisions and figures so far.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.errors import InputError, reading
from shears.models.blockwise.activations import Activations
from shears.records.artifacts import read_object, sync_path, sync_tree, write_json
from shears.records.folders import CHECKPOINTS, CONFIG, LOCK, MARKER, clear, sizes_of

logger = logging.getLogger(__name__)
SECONDS = 60.0  # of work that a kill may cost: gigabytes of hidden states are not written behind every fast block
TENSORS = "tensors.safetensors"


class Checkpoint:
    """The last saved state of the pruning that works in a folder; empty at its beginning.

    `state` and `done`, a number of blocks, are what `save` was given. Files that an interrupted run
    left beside it are deleted, and what was torn. InputError if that run read other things than
    `origin` says: weights, text, the version.
    """

    def __init__(self, work: Path, origin: Mapping[str, Any]) -> None:
        self.state: dict[str, Any] = {}
        self.done = 0
        self._work = work
        self._folder = work / CHECKPOINTS
        self._origin = dict(origin)
        self._last: Path | None = None
        self._saved = time.monotonic()
        whole = [path for path in self._folder.glob("*") if path.name.isdecimal() and _is_whole(path)]
        if whole:
            self._open(max(whole, key=lambda folder: int(folder.name)))
        self._tidy()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Delete everything where the work inside would fail again, or nothing of it was saved."""
        try:
            yield
        except (InputError, OSError, KeyboardInterrupt) as error:
            if self._last is None or isinstance(error, InputError):
                clear(self._work, {CONFIG})
            raise

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
        """Save JSON data, hidden states and tensors in place of those before; they are on the disk at the return.

        Without room for them those before stay, with a warning.
        """
        folder = self._folder / str(done)
        try:
            self._write(folder, done, state, hidden or {}, tensors or {})
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("%d blocks are pruned, which could not be saved for a resume: %s", done, error)
        else:
            before, self._last = self._last, folder
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)
        self._saved = time.monotonic()

    def load(self, hidden: Mapping[str, Activations]) -> dict[str, Tensor]:
        """Put the saved hidden states in place of others, by name; return the saved tensors."""
        assert self._last is not None
        for name, activations in hidden.items():
            activations.load(self._last / name)
        mapped: dict[str, Tensor] = load_file(self._last / TENSORS)
        return {name: tensor.clone() for name, tensor in mapped.items()}  # the file is deleted before they are

    def reading(self) -> AbstractContextManager[None]:
        """Return a context in which a wrong value of the state is an InputError that names its file."""
        return reading((self._last or self._folder) / MARKER)

    def _write(
        self,
        folder: Path,
        done: int,
        state: Mapping[str, Any],
        hidden: Mapping[str, Activations],
        tensors: Mapping[str, Tensor],
    ) -> None:
        folder.mkdir(parents=True)
        for name, activations in hidden.items():
            activations.save(folder / name)
        save_file(dict(tensors), folder / TENSORS)
        sync_tree(folder)
        marker = {"sizes": sizes_of(folder), "origin": self._origin, "done": done, "state": state}
        write_json(folder / MARKER, marker)
        sync_path(self._folder)
        sync_path(self._work)

    def _open(self, folder: Path) -> None:
        with reading(folder / MARKER):
            marker = read_object(folder / MARKER)
            before = dict(marker["origin"])
            state, done = dict(marker["state"]), int(marker["done"])
        changed = [key for key, value in self._origin.items() if before.get(key) != value]
        if changed:
            rule = f"an interrupted pruning must go on with the same {' and '.join(changed)}"
            raise InputError(f"{rule}, that of {self._work} had another; delete it, or choose another output")
        self.state, self.done, self._last = state, done, folder
        logger.info("%d blocks are pruned already", self.done)

    def _tidy(self) -> None:
        for path in self._work.iterdir():
            is_kept = path.name in (CONFIG, LOCK) or (self.written and path.suffix == ".safetensors")
            if path != self._folder and not is_kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._folder.glob("*"):
            if path != self._last:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is marked, and its files have the sizes in the marker; warn of others."""
    try:
        marker = read_object(folder / MARKER)
    except InputError:
        return False  # torn
    is_whole = marker.get("sizes") == sizes_of(folder)
    if not is_whole:
        logger.warning("%s is damaged; it is not used", folder)
    return is_whole
