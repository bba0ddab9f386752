"""Texts of one model by the C interface that llama.cpp and ik_llama.cpp share.

It runs in another Python and imports nothing of ours.
"""

import ctypes
from typing import Any

import numpy as np

from benchmarks.rival_process import LONGEST, SHORTEST


class Reader:
    """A loaded model and the cache of its texts; a subclass loads the model, opens a cache and empties it."""

    about: str

    def __init__(self, api: Any, model: Any, threads: int) -> None:
        self._api = api
        self._model = model
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._threads = threads
        self._texts = 1
        self._context = self._opened()
        self._length = 0

    def clear(self, texts: int) -> None:
        """Empty the cache, which then holds this many texts."""
        if texts != self._texts:
            self._api.llama_free(self._context)
            self._texts = texts
            self._context = self._opened()
        self._empty()
        self._length = 0

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones, a row a text."""
        count = len(tokens[0])
        batch = self._api.llama_batch_init(len(tokens) * count, 0, 1)
        batch.n_tokens = len(tokens) * count
        for text, each in enumerate(tokens):
            for place, token in enumerate(each):
                at = text * count + place
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, self._length + place, 1
                batch.seq_id[at][0], batch.logits[at] = text, place == count - 1
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode must return 0")
        self._api.llama_batch_free(batch)
        self._length += count
        rows = [self._logits((text + 1) * count - 1) for text in range(len(tokens))]
        return np.stack(rows) if len(rows) > 1 else rows[0][None]

    def _settings(self) -> Any:
        """Return the settings of a cache for the texts."""
        settings = self._api.llama_context_default_params()
        settings.n_ctx = LONGEST if self._texts == 1 else self._texts * SHORTEST
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = self._texts
        settings.n_threads = settings.n_threads_batch = self._threads
        return settings

    def _opened(self) -> Any:
        """Return a new context."""
        return self._api.llama_init_from_model(self._model, self._settings())

    def _empty(self) -> None:
        """Forget what the cache holds."""
        raise NotImplementedError

    def _logits(self, at: int) -> Any:
        """Return the logits after a token of the batch."""
        numbers = ctypes.cast(self._api.llama_get_logits_ith(self._context, at), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(numbers, (self._vocab_size,))
