"""Resolve a model's name once: a folder, a .gguf file, a hub id, or an embedded model."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from shears.checkpoints.packed.file import Package, is_package, read_package
from shears.config.embedded import EMBEDDED
from shears.errors import InputError, first_line
from shears.models.fetching import UNTIED, GgufDtype, convert_gguf, download, fetch, gguf_named
from shears.records.artifacts import (
    KINDS,
    PACKAGE,
    check_input,
    find_record,
    read_record,
    record_in,
    weights_fingerprint,
)
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelRef:
    """A model in a local folder, and the user's name for it; files are read at most once.

    A stage makes one with `resolve` where it takes a model's name, and passes it on whole.
    """

    folder: Path
    name: str
    needs_record: bool = True
    """False for a package of which transformers downloaded only the files that it knows."""

    @property
    def recorded_name(self) -> str:
        """The name in records: a path is made absolute, any other name stays as it is."""
        if (named := gguf_named(self.name)) is not None:
            return str(named[0].resolve()) + UNTIED * named[1]
        path = expanded(self.name)
        return str(path.resolve()) if path.exists() else self.name

    @property
    def is_package(self) -> bool:
        """Whether the folder holds a package."""
        return is_package(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights; InputError where the folder has no safetensors files."""
        return weights_fingerprint(self.folder)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The record that shears wrote into the folder, not verified; empty without one."""
        path = find_record(self.folder)
        return record_in(path) if path is not None and path.name in KINDS else {}

    @cached_property
    def package(self) -> Package:
        """The package in the folder, mapped, its bytes verified; InputError where it is not whole.

        The bytes are compared with the fingerprint in package.json or, where that has none, with the
        file's own.
        """
        has_record = self.needs_record or (self.folder / PACKAGE).is_file()
        record = read_record(self.folder, PACKAGE, fingerprint=self.fingerprint) if has_record else {}
        return read_package(self.folder, verify="fingerprint" not in record)

    def refuse_package(self, use: str) -> None:
        """Raise InputError for a package, whose adapter would be left out of the `use`."""
        if self.is_package:
            raise InputError(
                f"a model to {use} must be a model folder, got the package {self.name}; shears unpack it first"
            )


AnyModel = ModelRef | str | Path
"""A model's name or a resolved model: public functions take both."""


def resolve(model: AnyModel, dtype: str = "auto", recorded: object = None) -> ModelRef:
    """Return the model that a name stands for; a ModelRef is returned as it is.

    Embedded models and .gguf files are converted once into the cache, a .gguf file in bf16 where
    `dtype` says so, all else in fp32; a hub id is downloaded into the hub's cache (unless
    HF_HUB_OFFLINE). `recorded` is the fingerprint in the record that names the model: earlier
    versions kept the head of a .gguf file that is the embeddings once more. InputError where there
    is no such model.
    """
    if isinstance(model, ModelRef):
        return model
    name = str(model)
    if (named := gguf_named(name)) is not None:
        return _converted(name, *named, "bf16" if dtype == "bf16" else "fp32", recorded)
    path = expanded(name)
    if path.is_dir():
        return ModelRef(_checked_folder(path), name)
    if path.is_file():
        raise InputError(f"a model must be a folder, a .gguf file, a hub id or an embedded name, got the file {path}")
    if name in EMBEDDED:
        return ModelRef(fetch(name), name)
    in_local_folder = "/" in name and Path(name.split("/", 1)[0]).is_dir()  # then it is a path
    if in_local_folder or name.removesuffix(UNTIED).endswith(".gguf") or not HUB_ID.fullmatch(name):
        raise InputError(f"the model must exist, and there is no {name}; give a folder, a .gguf file or a hub id")
    return ModelRef(_downloaded(name), name)


def _converted(name: str, file: Path, untied: bool, dtype: GgufDtype, recorded: object) -> ModelRef:
    """Return the conversion of a .gguf file; that of earlier versions where `recorded` is its fingerprint."""
    ref = ModelRef(convert_gguf(file, dtype, untied=untied), name)
    if untied or recorded is None or ref.fingerprint == recorded:
        return ref
    before = ModelRef(convert_gguf(file, dtype, untied=True), name + UNTIED)
    return before if before.folder != ref.folder and before.fingerprint == recorded else ref


def resolve_with(model: AnyModel, adapter: str | Path | None, dtype: str) -> ModelRef:
    """Return the model that a name stands for, which an adapter is put on if one is given.

    An adapter for a .gguf file was trained on the fp32 conversion and belongs to its weights alone.
    InputError for an adapter beside a package, which would be measured or run without it.
    """
    path = None if adapter is None else find_record(expanded(adapter))
    recorded = None if path is None else record_in(path).get("base_fingerprint")
    ref = resolve(model, dtype if adapter is None else "auto", recorded)
    if adapter is not None and ref.is_package:
        raise InputError(
            f"a package comes with its adapter, got the adapter {adapter} beside {ref.name}; leave it out, or unpack "
            "the package and put the adapter on the model folder in it"
        )
    return ref


def _checked_folder(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"the model must be a base model, got the adapter {folder}; give it as --adapter")
    raise InputError(f"a model folder must hold config.json; {folder} does not")


def _downloaded(name: str) -> Path:
    try:
        return download(name)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise InputError(
            f"the model must be a folder, a .gguf file or a reachable hub id, got {name!r}: {first_line(error)}"
        ) from error


def checked_base(folder: Path, record: dict[str, Any], model: str | None = None) -> ModelRef:
    """Return an adapter's base model: the named one, else the recorded one, or its folder beside a moved adapter.

    InputError if it is not the model that the adapter was trained on.
    """
    name = model or str(record["base"])
    beside = folder.resolve().parent / Path(name).name
    if model is None and not Path(name).exists() and beside.is_dir():
        name = str(beside)
    if model is None and os.path.isabs(name) and not os.path.exists(name) and gguf_named(name) is None:
        raise InputError(f"the base model of {folder} must be where it was, there is no {name}; name it with --model")
    base = resolve(name, recorded=record["base_fingerprint"])
    check_input(f"the base model {name}", record["base_fingerprint"], base.fingerprint)
    return base
