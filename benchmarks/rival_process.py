"""The lines that a model in a process of its own answers; runs in every Python, and imports nothing of ours.

A line of stdin is JSON, {"tokens": [...], "new": N, "more": whether they follow those before}; its answer is
{"seconds": wall time, "cpu": CPU time, "tokens": [...]}. The model forgets all before unless there is more, reads the
tokens, and continues them greedily by N. N = 0 only reads.
"""

import json
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

LONGEST = 1024
"""Tokens of a sequence."""


class Model(Protocol):
    """A loaded model and the cache of one sequence."""

    about: str
    """What it says of its build and the processor."""

    def clear(self) -> None:
        """Empty the cache."""

    def continued(self, prompt: list[int], new: int) -> list[int]:
        """Read tokens; return the `new` likeliest ones after them."""


def serve(model: Model) -> None:
    """Answer the lines of stdin until it ends."""
    print(json.dumps({"ready": model.about}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        cpu = time.process_time()
        if not request.get("more"):
            model.clear()
        tokens = model.continued(request["tokens"], request["new"])
        timing = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        print(json.dumps({**timing, "tokens": tokens}), flush=True)


def greedy(read: Callable[[list[int]], Any], prompt: list[int], new: int) -> list[int]:
    """Return the `new` likeliest tokens after some; `read` returns the logits after the tokens that it appends."""
    tokens: list[int] = []
    logits = read(prompt)
    while len(tokens) < new:
        tokens.append(int(logits.argmax()))
        if len(tokens) < new:
            logits = read(tokens[-1:])
    return tokens


def importance_file(vectors: Any) -> bytes:
    """Return the importance matrix as ik_llama.cpp reads it: a count, then name, calls and values of each vector.

    One call, so that nothing is divided.
    """
    parts = [struct.pack("<i", len(vectors.files))]
    for name in vectors.files:
        values = vectors[name].astype("<f4")
        letters = name.encode()
        parts += [struct.pack("<i", len(letters)), letters, struct.pack("<ii", 1, values.size), values.tobytes()]
    return b"".join(parts)
