"""The model of a package through transformers, its packed weights made dense."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from shears.packed.file import PACKAGE_FILE, Package, read_package


def is_package(folder: str | Path) -> bool:
    """Tell whether a folder holds a package."""
    return (Path(folder) / PACKAGE_FILE).is_file()


def load_packaged(
    folder: Path, dtype: torch.dtype | str, package: Package | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model without its adapter, and what transformers says of the loading, as from_pretrained does.

    InputError for a file that is no whole package; whatever transformers raises for a model that it does not know.
    """
    package = package or read_package(folder)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    tensors = dict(package.model_tensors())
    options: dict[str, Any] = {"config": config, "state_dict": tensors, "dtype": dtype, "output_loading_info": True}
    model, info = cast("Any", kind).from_pretrained(None, **options)
    model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, info
