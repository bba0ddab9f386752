"""Other people's engines as rivals: a process of a Python that has one, its files, and a backend over it.

No engine is a dependency of the project: `PYTHON -m benchmarks.engines` runs where it is installed. One of the
processes is our own decoder, for timings of two processes at once.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from benchmarks.engines import LONGEST
from shears.errors import InputError
from shears.runtime.backend import Backend

Engine = Literal["llama.cpp", "ik_llama.cpp", "OpenVINO", "shears"]
ENGINES = get_args(Engine)
ROOT = Path(__file__).parents[1]


class Program(NamedTuple):
    """An engine's script, and the Python that has the engine."""

    engine: Engine
    python: str | Path

    def command(self, *words: object) -> list[str]:
        """Return its command, which runs in ROOT."""
        return [str(self.python), "-m", "benchmarks.engines", self.engine, *map(str, words)]


class Rival:
    """A file opened in a process of its own; `about` is what the engine says of its build and the processor.

    The process keeps to one core if `core` names it.
    """

    def __init__(self, program: Program, file: Path, threads: int, core: int | None = None) -> None:
        words = program.command("serve", file.resolve(), threads)
        self._process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})
        self.about = str(self.answer()["ready"])

    def ask(self, tokens: Sequence[int], new: int, *, more: bool = False, texts: int = 1) -> dict[str, Any]:
        """Return `tokens`, the `new` likeliest ones after some, and times; `more`: after those before.

        `texts` copies are read and continued at once.
        """
        self.begin(tokens, new, more=more, texts=texts)
        return self.answer()

    def begin(self, tokens: Sequence[int], new: int, *, more: bool = False, texts: int = 1) -> None:
        """Ask without waiting for the answer."""
        assert self._process.stdin is not None
        request = {"tokens": list(tokens), "new": new, "more": more, "texts": texts}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process by ending its input."""
        self._process.communicate()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a rival must answer, but its process ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def opened(program: Program, file: Path, threads: int = 1, core: int | None = None) -> Iterator[Rival]:
    """Yield a file's process, which ends with the block."""
    process = Rival(program, file, threads, core)
    try:
        yield process
    finally:
        process.close()


class RivalBackend(Backend):
    """A `Backend` of one sequence whose logits are 1 for the rival's likeliest token and 0 for the others.

    Greedy answers are the rival's own, by its own kernels; where they end is decided as for every other model.
    """

    max_sequences = 1
    max_length = LONGEST

    def __init__(self, process: Rival, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._process = process
        self._length = 0

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens; return the logits after the last one."""
        self.check([sequence], [tokens])
        return self._after(tokens)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "1 V"]:
        """Append a token; return the logits, one row."""
        self.check(sequences, [[token] for token in tokens])
        return self._after(tokens)[None]

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Raise InputError: the process gives the likeliest token alone."""
        raise InputError(f"a rival must be asked for greedy answers, got {len(tokens)} tokens to weigh")

    def drop(self, sequence: int) -> None:
        """Empty the sequence."""
        self._length = 0

    def length(self, sequence: int) -> int:
        """Return how many tokens the sequence holds."""
        return self._length

    def describe(self) -> Mapping[str, object]:
        """Return the name, and what the rival says of the processor."""
        return {"name": "rival", "isa": self._process.about}

    def _after(self, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self._process.ask(tokens, 1, more=self._length > 0)["tokens"][0]] = 1
        self._length += len(tokens)
        return logits


def quantized(program: Program, source: Path, target: Path, kind: str, embeddings: str, importance: Path) -> Path:
    """Return a file in one of llama.cpp's or ik_llama.cpp's formats (q4_k_m, ...), made now if it is not there.

    `embeddings` is the type of the embeddings, which are the head too where the two are tied; `importance` the .npz
    file of each linear's mean squares of inputs. InputError if the engine refuses.
    """
    part = target.with_name(f"partial-{target.name}")
    words = ("quantize", source.resolve(), part.resolve(), kind, embeddings, importance.resolve())
    return _made(program, words, part, target)


def converted(program: Program, source: Path, target: Path) -> Path:
    """Return the folder that an engine makes of a file or folder, made now if it is not there."""
    part = target.with_name(f"partial-{target.name}")
    return _made(program, ("convert", source.resolve(), part.resolve()), part, target)


def dequantized(program: Program, source: Path) -> Path:
    """Return a .gguf file of ik_llama.cpp's with its numbers in F16, which other engines read."""
    target = source.with_name(f"{source.stem}-f16.gguf")
    part = target.with_name(f"partial-{target.name}")
    return _made(program, ("dequantize", source.resolve(), part.resolve()), part, target)


def _made(program: Program, words: Sequence[object], part: Path, target: Path) -> Path:
    if target.exists():
        return target
    done = subprocess.run(program.command(*words), cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{program.engine} must make {target}: {done.stderr.strip().splitlines()[-1:]}")
    return part.replace(target)
