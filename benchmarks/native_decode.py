"""Our native decoder for benchmarks.rival: a package in a process of its own.

    python -m benchmarks.native_decode serve PACKAGE THREADS

benchmarks.rival_process says what it answers.
"""

import sys
from pathlib import Path

from benchmarks.rival_process import LONGEST, serve
from shears.checkpoints.packed.file import read_package
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import source_of_package


class Model:
    """A package and the cache of one sequence."""

    def __init__(self, package: Path, threads: int) -> None:
        source = source_of_package(read_package(package))
        self._backend = NativeBackend(source, threads, max_length=LONGEST, max_sequences=1)
        self.about = str(self._backend.describe()["isa"])

    def clear(self) -> None:
        """Empty the cache."""
        self._backend.drop(0)

    def continued(self, prompt: list[int], new: int) -> list[int]:
        """Read tokens; return the `new` likeliest ones after them."""
        tokens: list[int] = []
        logits = self._backend.prefill(0, prompt)
        while len(tokens) < new:
            tokens.append(int(logits.argmax()))
            if len(tokens) < new:
                logits = self._backend.step([0], tokens[-1:])[0]
        return tokens


if __name__ == "__main__":
    serve(Model(Path(sys.argv[2]), int(sys.argv[3])))
