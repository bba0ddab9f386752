"""Our native decoder for benchmarks.rival: a package in a process of its own.

    python -m benchmarks.native_decode serve PACKAGE THREADS

benchmarks.rival_process says what it answers.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.decode import native
from benchmarks.rival_process import greedy, serve
from shears.checkpoints.packed.file import read_package
from shears.runtime.native.model_source import source_of_package


class Model:
    """A package and the cache of one sequence."""

    def __init__(self, package: Path, threads: int) -> None:
        self._backend = native(source_of_package(read_package(package)), threads)
        self.about = str(self._backend.describe()["isa"])

    def clear(self) -> None:
        """Empty the cache."""
        self._backend.drop(0)

    def continued(self, prompt: list[int], new: int) -> list[int]:
        """Read tokens; return the `new` likeliest ones after them."""
        return greedy(self._read, prompt, new)

    def _read(self, tokens: list[int]) -> Any:
        """Return the logits after tokens."""
        return self._backend.step([0], tokens)[0] if len(tokens) == 1 else self._backend.prefill(0, tokens)


if __name__ == "__main__":
    serve(Model(Path(sys.argv[2]), int(sys.argv[3])))
