"""Resolve a model's name once: a folder, a .gguf file, a hub id, or an embedded model."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.checkpoints import without_code
from shears.checkpoints.package_file import PACKAGE_FILE, Package, read_package
from shears.config.sparsify_options import EMBEDDED
from shears.errors import InputError, reading
from shears.models.fetching import convert_gguf, download, fetch
from shears.records import artifacts
from shears.records.artifacts import check_input, find_record, read_record
from shears.records.paths import ADAPTER_CONFIG, expanded

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
INSIDE = ".."
"""The recorded base of an adapter that lies inside its base model's folder."""


@dataclass(frozen=True)
class ModelRef:
    """A model in a local folder, and the user's name for it; files are read at most once."""

    folder: Path
    name: str

    @property
    def recorded_name(self) -> str:
        """The name in records: a path is made absolute, any other name stays as it is."""
        path = gguf_named(self.name) or expanded(self.name)
        return str(path.resolve()) if path.exists() else self.name

    @property
    def is_package(self) -> bool:
        return (self.folder / PACKAGE_FILE).is_file()

    @cached_property
    def fingerprint(self) -> str:
        return artifacts.weights_fingerprint(self.folder)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The record that shears wrote into the folder, not verified; empty without one."""
        path = find_record(self.folder)
        return artifacts.record_in(path) if path is not None and path.name in artifacts.KINDS else {}

    @cached_property
    def package(self) -> Package:
        """The folder's package, mapped and verified by its record's fingerprint or its file's."""
        record = read_record(self.folder, artifacts.PACKAGE, fingerprint=self.fingerprint)
        return read_package(self.folder, verify="fingerprint" not in record)

    def refuse_package(self, use: str) -> None:
        if self.is_package:
            raise InputError(
                f"a model to {use} must be a model folder, got the package {self.name}; "
                "make a folder of it with shears export --format unpacked"
            )


def gguf_named(name: str | Path) -> Path | None:
    """Return the .gguf file that a name means: the file, or a folder of format gguf; else None."""
    path = expanded(name)
    if (path / artifacts.GGUF).is_file():
        path = path / artifacts.GGUF_FILE
    return path if path.suffix == ".gguf" and path.is_file() else None


AnyModel = ModelRef | str | Path
"""A model's name or a resolved model: public functions take both."""


def resolve(model: AnyModel, dtype: str = "auto") -> ModelRef:
    """Return the model that a name stands for; a ModelRef is returned as it is.

    Embedded models and .gguf files are converted once into the cache, a .gguf file in bf16 where
    `dtype` says so, all else in fp32; a hub id is downloaded into the hub's cache (unless
    HF_HUB_OFFLINE). InputError where there is no such model.
    """
    if isinstance(model, ModelRef):
        return model
    name = str(model)
    path = expanded(name)
    if (file := gguf_named(name)) is not None:
        return ModelRef(convert_gguf(file, "bf16" if dtype == "bf16" else "fp32"), name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            is_adapter = (path / ADAPTER_CONFIG).is_file()
            hint = "it is an adapter; give it as --adapter" if is_adapter else "it does not"
            raise InputError(f"a model folder must hold config.json, got {path}: {hint}")
        return ModelRef(path, name)
    if name in EMBEDDED:
        return ModelRef(fetch(name), name)
    in_local_folder = "/" in name and Path(name.split("/", 1)[0]).is_dir()  # then it is a path
    if path.is_file() or in_local_folder or name.endswith(".gguf") or not HUB_ID.fullmatch(name):
        raise InputError(f"a model must be a folder, a .gguf file or a hub id, there is no {name}; check the name")
    with reading(f"the model {name}, which is no folder here,"):
        return ModelRef(download(name), name)


def resolve_with(model: AnyModel, adapter: str | Path | None, dtype: str) -> ModelRef:
    """Return the model that a name stands for, which an adapter is put on if one is given.

    An adapter for a .gguf file was trained on the fp32 conversion and belongs to its weights alone.
    InputError for an adapter beside a package, which would be measured or run without it.
    """
    ref = resolve(model, dtype if adapter is None else "auto")
    if adapter is not None and ref.is_package:
        rule = f"the package {ref.name} has its own adapter"
        raise InputError(f"{rule}, got {adapter} as well; leave --adapter out")
    return ref


def checked_base(folder: Path, record: dict[str, Any], model: str | None = None) -> ModelRef:
    """Return an adapter's base: the named model or the recorded one, sought beside it if moved."""
    name = str(model or record["base"])
    above = folder.resolve().parent
    if model is None and name == INSIDE:
        name = str(above)
    elif model is None and not os.path.exists(name) and (above / Path(name).name).is_dir():
        name = str(above / Path(name).name)
    base = resolve(name)
    check_input(f"the base model {name}", record["base_fingerprint"], base.fingerprint)
    return base


def load_tokenizer(model: ModelRef) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; its padding token is the end of sequence if it has none."""
    with reading(model.folder):
        tokenizer = without_code.load_tokenizer(model.folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_tokenizer(model: ModelRef, folder: Path) -> None:
    """Write the model's tokenizer without the padding token of `load_tokenizer`.

    A trainer that finds the end of sequence as the padding token may mask it in the labels.
    """
    with reading(model.folder):
        tokenizer = without_code.load_tokenizer(model.folder)
    tokenizer.save_pretrained(folder)


def end_tokens(tokenizer: PreTrainedTokenizerBase, settings: Any) -> frozenset[int]:
    """Return every token that ends a text: the tokenizer's and the generation settings'."""
    of_model: Iterable[int] | int | None = getattr(settings, "eos_token_id", None)
    several = of_model if isinstance(of_model, Iterable) else [of_model]
    return frozenset(token for token in (tokenizer.eos_token_id, *several) if token is not None)
