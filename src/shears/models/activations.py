"""Hidden states between two blocks: in memory up to a budget, the rest in files."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME = "states"
BUDGET = 2 * 10**9  # bytes in memory of hidden states and products to read again; the rest in files


class Activations:
    """A list of tensors of which at most `budget` bytes stay in memory (None: no limit).

    Other tensors are written to a temporary folder below `folder` (None: the system's) and read at
    each access, onto the device that they came from. `close`, or a `with` block, deletes the files.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self._budget = budget
        self._folder = folder
        self._kept: dict[int, Tensor] = {}
        self._devices: list[torch.device] = []
        self._used = 0
        self._files: TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        loaded: Tensor = load_file(self._path(index), device=str(self._devices[index]))[NAME]
        return loaded

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        before = self._kept.pop(index, None)
        self._used += tensor.nbytes - (0 if before is None else before.nbytes)
        if self._budget is None or self._used <= self._budget:
            self._kept[index] = tensor
        else:
            self._used -= tensor.nbytes
            save_file({NAME: tensor.contiguous()}, self._path(index))
        self._devices[index] = tensor.device

    def append(self, tensor: Tensor) -> None:
        self._devices.append(tensor.device)
        self[len(self) - 1] = tensor

    def save(self, folder: Path) -> None:
        folder.mkdir()
        for index, tensor in enumerate(self):
            save_file({NAME: tensor.contiguous()}, folder / f"{index}.safetensors")

    def load(self, folder: Path) -> None:
        for index, device in enumerate(self._devices):
            self[index] = load_file(folder / f"{index}.safetensors", device=str(device))[NAME]

    @property
    def room(self) -> int | None:
        """The bytes of the budget that are left; None without one."""
        return None if self._budget is None else self._budget - self._used

    def close(self) -> None:
        self._kept.clear()
        if self._files is not None:
            self._files.cleanup()

    def __enter__(self) -> "Activations":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _path(self, index: int) -> Path:
        if self._files is None:
            self._files = TemporaryDirectory(prefix=".activations-", dir=self._folder)
        return Path(self._files.name) / f"{index}.safetensors"
