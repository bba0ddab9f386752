"""llama.cpp as a rival: a process of another Python that has llama-cpp-python, its files, and a backend over it.

That package is no dependency of the project: `PYTHON llama_cpp_decode.py` runs where it is installed.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from shears.errors import InputError
from shears.runtime.generation.backend import check_prefill, check_step

LONGEST = 1024  # tokens of a sequence, as in llama_cpp_decode.py
SCRIPT = Path(__file__).with_name("llama_cpp_decode.py")


class LlamaCpp:
    """A .gguf file opened in a process of its own; `about` is what llama.cpp says of the processor."""

    def __init__(self, python: str | Path, file: Path, threads: int) -> None:
        command = [str(python), str(SCRIPT), "serve", str(file), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = str(self._read()["ready"])

    def ask(self, tokens: Sequence[int], new: int, *, more: bool = False) -> dict[str, Any]:
        """Return `tokens`, the `new` likeliest ones after some, `seconds` and `cpu`; `more`: after those before."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"tokens": list(tokens), "new": new, "more": more}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process by ending its input."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("llama.cpp must answer, but its process ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def opened(python: str | Path, file: Path, threads: int = 1) -> Iterator[LlamaCpp]:
    """Yield a file's process, which ends with the block."""
    process = LlamaCpp(python, file, threads)
    try:
        yield process
    finally:
        process.close()


class LlamaCppBackend:
    """A `Backend` of one sequence whose logits are 1 for llama.cpp's likeliest token and 0 for the others.

    Greedy answers are llama.cpp's own, by its own kernels; where they end is decided as for every other model.
    """

    max_sequences = 1
    max_length = LONGEST

    def __init__(self, process: LlamaCpp, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._process = process
        self._length = 0

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens; return the logits after the last one."""
        check_prefill(self, sequence, tokens, lambda _: self._length)
        return self._after(tokens)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "1 V"]:
        """Append a token; return the logits, one row."""
        check_step(self, sequences, tokens, lambda _: self._length)
        return self._after(tokens)[None]

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Raise InputError: the process gives the likeliest token alone."""
        raise InputError(f"llama.cpp must be asked for greedy answers, got {len(tokens)} tokens to weigh")

    def drop(self, sequence: int) -> None:
        """Empty the sequence."""
        self._length = 0

    def describe(self) -> Mapping[str, object]:
        """Return the name, and what llama.cpp says of the processor."""
        return {"name": "llama.cpp", "isa": self._process.about}

    def _after(self, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self._process.ask(tokens, 1, more=self._length > 0)["tokens"][0]] = 1
        self._length += len(tokens)
        return logits


def quantized(python: str | Path, source: Path, target: Path, kind: str, embeddings: str, importance: Path) -> Path:
    """Return a file in one of llama.cpp's formats (q4_k_m, ...), made now if it is not there.

    `embeddings` is the type of the embeddings, which are the head too where the two are tied; `importance` the .npz
    file of each linear's mean squares of inputs. InputError if llama.cpp refuses.
    """
    if target.is_file():
        return target
    part = target.with_name(f"{target.name}.partial")
    command = [python, SCRIPT, "quantize", source, part, kind, embeddings, importance]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"llama.cpp must quantize {source} to {kind}: {done.stderr.strip().splitlines()[-1:]}")
    return part.replace(target)
