"""The model of a package through transformers, its packed weights made dense."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from shears.checkpoints.loading_errors import CONFIG_ERRORS
from shears.checkpoints.packed.file import Package, read_package
from shears.errors import InputError, first_line
from shears.records.peft_files import ADAPTER_CONFIG

NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")  # of a block, in the name of a tensor


def names_fingerprint(record: object) -> bool:
    """Tell whether a package's record vouches for the bytes of its file; InputError for what is no record."""
    if not isinstance(record, dict):
        raise InputError(f"package.json must hold a record, got {record!r:.60}; export the package again")
    return "fingerprint" in record


def settings_of_adapter(folder: Path) -> Path:
    """Return the file of the settings of a package's adapter; InputError where it is missing."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise InputError(
            f"a package with an adapter must hold {path.name}, {folder} does not; export the package again"
        )
    return path


def packaged_config(folder: Path) -> Any:
    """Return the configuration of a package's model; InputError for one that transformers does not read."""
    try:
        return AutoConfig.from_pretrained(folder)
    except CONFIG_ERRORS as error:
        raise InputError(
            f"{folder} must hold the config.json of a model that transformers knows: {first_line(error)}"
        ) from None


def load_packaged(
    folder: Path, dtype: torch.dtype | str, package: Package | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model without its adapter, and what transformers says of the loading, as from_pretrained does.

    InputError for a file that is no whole package; whatever transformers raises for a model that it does not know.
    """
    package = package or read_package(folder)
    if package.index.adapter:
        settings_of_adapter(folder)
    config = packaged_config(folder)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    tensors = dict(package.model_tensors())
    options: dict[str, Any] = {"config": config, "state_dict": tensors, "dtype": dtype, "output_loading_info": True}
    model, info = cast("Any", kind).from_pretrained(None, **options)
    _refuse_more_blocks(folder, model.state_dict().keys(), info["unexpected_keys"])
    model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, info


def _refuse_more_blocks(folder: Path, names: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse a config of fewer blocks than the package holds: transformers would pass over the others."""
    known = {NUMBER.sub("#", name) for name in names}
    if beyond := sorted(name for name in unexpected if NUMBER.sub("#", name) in known):
        raise InputError(
            f"{folder} must have all its blocks in config.json, {beyond[0]} is beyond them; restore that file"
        )
