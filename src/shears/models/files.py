"""What a model's folder says of itself, without transformers."""

import json
from pathlib import Path

from shears.checkpoints.packed.file import PACKAGE_FILE
from shears.errors import InputError


def is_package(folder: str | Path) -> bool:
    """Tell whether a folder holds a package."""
    return (Path(folder) / PACKAGE_FILE).is_file()


def quantized_by(folder: Path) -> str | None:
    """Return the method by which the weights in a model's folder are quantized, None where they are plain numbers.

    InputError where the folder's configuration is none.
    """
    config = folder / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config} must be a JSON file, got {error}; get the model again") from None
    if not isinstance(found, dict):
        raise InputError(f"{config} must be a JSON object, got {str(found)[:40]}; get the model again")
    quantization = found.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return None if method is None else str(method)
