"""Read the configuration of a model folder, or say in one line why not; no network is built or imported."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from shears.checkpoints.without_code import NeedsOwnCode, load_config
from shears.errors import InputError, first_line
from shears.records.peft_files import ADAPTER_CONFIG

RULE = "a model read part by part must"

LOADING_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, RuntimeError,
    ImportError, AssertionError, StrictDataclassError, SafetensorError,
)  # fmt: skip
"""Raised while transformers loads a model from its files."""


class UnsupportedCheckpoint(InputError):  # noqa: N818  # InputError says that it is an error
    """The model cannot be read part by part; `load_model` may still load it whole."""


def known_config(folder: Path) -> Any:
    """Return a model folder's configuration; UnsupportedCheckpoint for unknown architectures.

    NeedsOwnCode where the folder brings code along for them.
    """
    try:
        return load_config(folder)
    except NeedsOwnCode:
        raise
    except LOADING_ERRORS as error:
        rule = f"{folder} must hold the config.json of a model that transformers knows"
        raise UnsupportedCheckpoint(f"{rule}: {first_line(error)}") from error


def read_config(folder: Path) -> Any:
    """Return a model folder's configuration; UnsupportedCheckpoint for adapters and quantized weights."""
    config = known_config(folder)
    parts = (config, config.get_text_config())
    if any(getattr(part, "quantization_config", None) for part in parts):
        raise UnsupportedCheckpoint(f"{RULE} not be quantised, {folder} is")
    if (folder / ADAPTER_CONFIG).exists():
        raise UnsupportedCheckpoint(f"{RULE} be without an adapter, {folder} has one")
    return config
