"""Read the configuration of a model folder, or say in one line why not; no network is built or imported."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from shears.checkpoints.without_code import load_config
from shears.errors import InputError, reading
from shears.records.paths import ADAPTER_CONFIG

LOADING_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, RuntimeError,
    ImportError, AssertionError, StrictDataclassError, SafetensorError,
)  # fmt: skip
"""Raised while transformers loads a model from its files."""


class UnsupportedCheckpoint(InputError):  # noqa: N818  # InputError says that it is an error
    """The model cannot be read part by part; `load_model` may still load it whole."""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Turn errors into an InputError as `reading` does, and those that elsewhere are ours, such as wrong shapes."""
    with reading(name):
        try:
            yield
        except (RuntimeError, ImportError, AssertionError, re.error) as error:
            raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


def known_config(folder: Path) -> Any:
    """Return a model folder's configuration; InputError for unknown architectures."""
    with reading(folder / "config.json"):
        return load_config(folder)


def read_config(folder: Path) -> Any:
    """Return a model folder's configuration; UnsupportedCheckpoint for adapters and quantized weights."""
    config = known_config(folder)
    parts = (config, config.get_text_config())
    if any(getattr(part, "quantization_config", None) for part in parts):
        raise UnsupportedCheckpoint(f"a model read part by part must not be quantised, {folder} is")
    if (folder / ADAPTER_CONFIG).exists():
        raise UnsupportedCheckpoint(f"a model read part by part must be without an adapter, {folder} has one")
    return config
