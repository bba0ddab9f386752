"""The lines that a model in a process of its own answers; runs in every Python, and imports nothing of ours.

A line of stdin is JSON, {"tokens": [...], "new": N, "more": whether they follow those before, "texts": B}; its answer
is {"seconds": wall time, "cpu": CPU time, "decoding": wall time after the tokens are read, "tokens": [...]}. The model
forgets all before unless there is more, reads the tokens as B texts at once, and continues each greedily by N. N = 0
only reads.
"""

import json
import struct
import sys
import time
from typing import Any, Protocol

LONGEST = 1024
"""Tokens of a text that is alone."""
MOST_TEXTS, SHORTEST = 16, 128
"""Texts at once, and the tokens that each can have."""


class Model(Protocol):
    """A loaded model and its cache."""

    about: str
    """What it says of its build and the processor."""

    def clear(self, texts: int) -> None:
        """Empty the cache, which then holds this many texts."""

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text, to all as many; return the logits after the last ones, a row a text."""


def serve(model: Model) -> None:
    """Answer the lines of stdin until it ends."""
    print(json.dumps({"ready": model.about}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, **json.loads(line))), flush=True)


def answer(model: Model, tokens: list[int], new: int, more: bool = False, texts: int = 1) -> dict[str, Any]:
    """Return the likeliest `new` tokens after some, those of the first text, and the times."""
    cpu, start = time.process_time(), time.perf_counter()
    if not more:
        model.clear(texts)
    logits = model.read([tokens] * texts)
    likeliest = logits.argmax(1).tolist()
    is_read = time.perf_counter()
    found = likeliest[:1] if new else []
    while len(found) < new:
        likeliest = model.read([[token] for token in likeliest]).argmax(1).tolist()
        found.append(likeliest[0])
    end = time.perf_counter()
    times = {"seconds": end - start, "cpu": time.process_time() - cpu, "decoding": end - is_read}
    return {**times, "tokens": found}


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
