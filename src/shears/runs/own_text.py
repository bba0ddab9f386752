"""The stages that can read text which the dense model writes itself: here the writer meets the stages.

`sparsity`, `adapt` and `runtime` do not know each other, so the text is written here and passed in.
"""

from pathlib import Path
from typing import Any

from shears.models.fetching import cache_folder
from shears.models.ref import ModelRef
from shears.runtime.self_text import cached_self_text
from shears.sparsity import stage as sparsity

FOLDER = "self_text"  # in the cache of converted models


def write_text(model: ModelRef, tokens: int, seed: int) -> Path:
    """Return a file of text that a model wrote itself, from the cache where it is there already."""
    return cached_self_text(cache_folder() / FOLDER, model, tokens=tokens, seed=seed)


def sparsify(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. The model is read and written block by block: memory holds the
    embeddings, one block and the hidden states. Only text of its own (calibration self) is written by the whole model.
    InputError for a model, a text or settings that cannot be used.
    """
    return sparsity.sparsify(model, output, write_text=write_text, **config)
