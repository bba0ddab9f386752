"""The stage that can calibrate on text which the model writes itself: `sparsity` does not know the writer."""

from pathlib import Path
from typing import Any

from shears.runtime.self_text import own_text
from shears.sparsity.stage import sparsify_on


def sparsify(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. The model is read and written block by block: memory holds the
    embeddings, one block and the hidden states. Only text of its own (calibration self) is written by the whole model.
    InputError for a model, a text or settings that cannot be used.
    """
    return sparsify_on(own_text, model, output, **config)
