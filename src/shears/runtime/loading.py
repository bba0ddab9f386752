"""From a model's name to an engine.

A package runs in the native decoder where that covers it, any other model in transformers.
"""

import logging
from pathlib import Path
from typing import Any

from shears.checkpoints.configuration import LOADING_ERRORS, known_config
from shears.checkpoints.without_code import load_generation_config
from shears.config.resolve import build
from shears.config.serve import RunningConfig
from shears.errors import InputError, first_line
from shears.models.devices import set_threads
from shears.models.ref import AnyModel, resolve_with
from shears.models.tokenizers import end_tokens, load_tokenizer
from shears.records.trained_form import trained_form
from shears.runtime.choice import package_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.engine import Engine

logger = logging.getLogger(__name__)


def load(model: AnyModel, adapter: str | Path | None = None, *, threads: int | None = None, **options: Any) -> Engine:
    """Return an engine for a package, or for a model with or without an adapter.

    Keywords are those of RunningConfig (`dtype`, `device`). InputError if there is no such model.
    """
    wanted = build(RunningConfig, "", options)
    set_threads(threads)
    ref = resolve_with(model, adapter, wanted.dtype)
    backend: Backend
    if ref.is_package:
        backend = package_backend(ref, wanted.dtype)
        tokenizer = load_tokenizer(ref)
        settings = generation_settings(ref.folder)
    else:
        from shears.models.load import load_with_adapter
        from shears.runtime.generation.transformers_backend import TransformersBackend

        network, tokenizer = load_with_adapter(ref, adapter, wanted.dtype, wanted.device)
        backend = TransformersBackend(network)
        settings = getattr(network, "generation_config", None)
    about = backend.describe()
    plural = "" if about["threads"] == 1 else "s"
    details = f"{about['isa']}, {about['values']}, {about['threads']} thread{plural}"
    logger.info("%s runs on %s (%s)", ref.name, about["name"], details)
    if (form := trained_form(adapter, ref.folder)) is not None:
        asked = "it is asked so, at temperature 0 unless another is given"
        logger.info("%s was trained on %s: %s", ref.name, form.words, asked)
    return Engine(backend, tokenizer, end_tokens(tokenizer, settings), form)


def generation_settings(folder: Path) -> Any:
    """Return a package's generation settings: from their file, else from the config."""
    settings = folder / "generation_config.json"
    if not settings.is_file():
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(known_config(folder))
    try:
        return load_generation_config(folder)
    except LOADING_ERRORS as error:
        raise InputError(f"{settings} must hold settings of transformers: {first_line(error)}") from error
