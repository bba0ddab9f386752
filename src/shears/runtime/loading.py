"""From a name to an engine: a package through the native decoder or packed linears, any other model by transformers."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from shears.checkpoints.conversion import LOADING_ERRORS, known_config
from shears.config.resolve import build
from shears.config.serve import RunningConfig
from shears.errors import InputError, first_line
from shears.models.devices import set_threads
from shears.models.load import load_tokenizer, load_with_adapter
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.runtime.drop_in.backend import DropInBackend
from shears.runtime.engine.backend import Backend
from shears.runtime.engine.engine import Engine
from shears.runtime.engine.transformers_backend import TransformersBackend
from shears.runtime.native.architectures import NotCoveredError
from shears.runtime.native.available import kernels_available

logger = logging.getLogger(__name__)


def load(model: AnyModel, adapter: str | Path | None = None, *, threads: int | None = None, **options: Any) -> Engine:
    """Return an engine for a package, or for a model by any name with or without an adapter.

    Keywords are those of RunningConfig (`backend`, `dtype`, `device`). InputError for what is no such model, and for a
    backend that does not run it.
    """
    wanted = build(RunningConfig, "", options)
    set_threads(threads)
    ref = resolve(model)
    if ref.is_package:
        engine = _package_engine(ref, adapter, wanted)
    elif wanted.backend == "auto":
        engine = _model_engine(ref, adapter, wanted)
    else:
        raise InputError(f"backend {wanted.backend} runs packages, {ref.name} is none; shears export --format package")
    logger.info("%s runs on %s", ref.name, described(engine.backend))
    return engine


def described(backend: Backend) -> str:
    """Return what runs a model, in words."""
    found = backend.describe()
    threads = found["threads"]
    return f"{found['name']} ({found['isa']}, {found['values']}, {threads} thread{'' if threads == 1 else 's'})"


def _model_engine(model: ModelRef, adapter: str | Path | None, wanted: RunningConfig) -> Engine:
    loaded, tokenizer = load_with_adapter(model, adapter, wanted.dtype, wanted.device)
    settings: Any = getattr(loaded, "generation_config", None)
    found = ends(tokenizer.eos_token_id, getattr(settings, "eos_token_id", None))
    return Engine(TransformersBackend(loaded), tokenizer, found)


def _package_engine(model: ModelRef, adapter: str | Path | None, wanted: RunningConfig) -> Engine:
    if adapter is not None:
        raise InputError(
            f"a package comes with its adapter, got adapter={adapter} beside {model.folder}; unpack it first"
        )
    backend = package_backend(model, wanted)
    tokenizer = load_tokenizer(model)
    return Engine(backend, tokenizer, ends(tokenizer.eos_token_id, _end_of_package(model.folder)))


def package_backend(model: ModelRef, wanted: RunningConfig) -> Backend:
    """Return the backend of a package; `auto` takes the native decoder where it was built and covers the model."""
    if wanted.backend == "drop-in":
        return DropInBackend(model, dtype=wanted.dtype)
    if kernels_available():
        from shears.runtime.native.decoder import open_native

        try:
            return open_native(model.package, torch.get_num_threads())
        except NotCoveredError as error:
            if wanted.backend == "native":
                raise
            logger.info("%s: %s; transformers runs it, with packed linears", model.folder, error)
    elif wanted.backend == "native":
        raise InputError("backend native needs the C++ kernels, which were not built; use backend drop-in")
    return DropInBackend(model, dtype=wanted.dtype)


def _end_of_package(folder: Path) -> Any:
    """Return what transformers ends a text of this model at; without settings of generation, what its config says."""
    from transformers import GenerationConfig

    settings = folder / "generation_config.json"
    if not settings.is_file():
        return GenerationConfig.from_model_config(known_config(folder)).eos_token_id
    try:
        return GenerationConfig.from_pretrained(folder).eos_token_id
    except LOADING_ERRORS as error:
        raise InputError(f"{settings} must hold settings of transformers: {first_line(error)}") from error


def ends(*found: Iterable[int] | int | None) -> frozenset[int]:
    """Return every token that ends a text, for the tokenizer or for the model (chat models have several)."""
    result: set[int] = set()
    for ids in found:
        result |= set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    return frozenset(result)
