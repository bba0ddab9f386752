"""Our native decoder for benchmarks.rival: a package in a process of its own.

    python -m benchmarks.native_decode serve PACKAGE THREADS

benchmarks.rival_process says what it answers.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rival_process import LONGEST, MOST_TEXTS, serve
from shears.checkpoints.packed.file import read_package
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import source_of_package


class Model:
    """A package and the cache of its texts."""

    def __init__(self, package: Path, threads: int) -> None:
        source = source_of_package(read_package(package))
        self._backend = NativeBackend(source, threads, max_length=LONGEST, max_sequences=MOST_TEXTS)
        self.about = str(self._backend.describe()["isa"])

    def clear(self, texts: int) -> None:
        """Empty the cache."""
        for text in range(MOST_TEXTS):
            self._backend.drop(text)

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones."""
        if len(tokens[0]) == 1:
            return self._backend.step(range(len(tokens)), [token for (token,) in tokens])
        return np.stack([self._backend.prefill(text, each) for text, each in enumerate(tokens)])


if __name__ == "__main__":
    serve(Model(Path(sys.argv[2]), int(sys.argv[3])))
