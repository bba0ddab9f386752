"""Reading tokens of several texts at once by the C interface that llama.cpp and ik_llama.cpp share.

It runs in another Python and imports nothing of ours.
"""

import ctypes
from typing import Any

import numpy as np


class Reader:
    """Appends tokens to the texts of a context; `length` is that of each, and the owner of the context empties it."""

    def __init__(self, api: Any, context: Any, vocab_size: int) -> None:
        self.length = 0
        self._api = api
        self._context = context
        self._vocab_size = vocab_size

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones, a row a text."""
        count = len(tokens[0])
        batch = self._api.llama_batch_init(len(tokens) * count, 0, 1)
        batch.n_tokens = len(tokens) * count
        for text, each in enumerate(tokens):
            for place, token in enumerate(each):
                at = text * count + place
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, self.length + place, 1
                batch.seq_id[at][0], batch.logits[at] = text, place == count - 1
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode must return 0")
        self._api.llama_batch_free(batch)
        self.length += count
        rows = [self._logits((text + 1) * count - 1) for text in range(len(tokens))]
        return np.stack(rows) if len(rows) > 1 else rows[0][None]

    def _logits(self, at: int) -> Any:
        """Return the logits after a token of the batch."""
        numbers = ctypes.cast(self._api.llama_get_logits_ith(self._context, at), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(numbers, (self._vocab_size,))
