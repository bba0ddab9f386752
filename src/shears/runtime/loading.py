"""From a model's name to an engine.

A package runs in the native decoder where that covers it, any other model in transformers.
"""

import logging
from pathlib import Path
from typing import Any

from shears.checkpoints.without_code import known_config, load_generation_config
from shears.config.export_options import FORMATS
from shears.config.resolve import build
from shears.config.serve_options import RunningConfig
from shears.errors import reading
from shears.models.devices import set_threads
from shears.models.ref import AnyModel, ModelRef, end_tokens, load_tokenizer, resolve_with
from shears.records.artifacts import COMPRESS, RECIPE, read_json
from shears.records.paths import expanded
from shears.records.trained_form import trained_form
from shears.runtime.backend import Backend
from shears.runtime.choice import package_backend
from shears.runtime.engine import Engine

logger = logging.getLogger(__name__)


def load(model: AnyModel, adapter: str | Path | None = None, *, threads: int | None = None, **options: Any) -> Engine:
    """Return an engine for a package, or for a model with or without an adapter.

    The folder of `compress` or `run` stands for the package in it. Keywords are those of RunningConfig
    (`dtype`, `device`). InputError if there is no such model.
    """
    wanted = build(RunningConfig, "", options)
    set_threads(threads)
    ref = resolve_with(package_in(model), adapter, wanted.dtype)
    backend: Backend
    if ref.is_package:
        backend = package_backend(ref, wanted.dtype)
        tokenizer = load_tokenizer(ref)
        settings = generation_settings(ref.folder)
    else:
        from shears.models.load import load_with_adapter
        from shears.runtime.transformers_backend import TransformersBackend

        network, tokenizer = load_with_adapter(ref, adapter, wanted.dtype, wanted.device)
        backend = TransformersBackend(network)
        settings = getattr(network, "generation_config", None)
    about = backend.describe()
    details = f"{about['isa']}, {about['values']}, threads: {about['threads']}"
    logger.info("%s runs on %s (%s)", ref.name, about["name"], details)
    if (form := trained_form(adapter, ref.folder)) is not None:
        asked = "it is asked so, at temperature 0 unless another is given"
        logger.info("%s was trained on %s: %s", ref.name, form.words, asked)
    return Engine(backend, tokenizer, end_tokens(tokenizer, settings), form)


def package_in(model: AnyModel) -> AnyModel:
    """Return the package in a folder that `compress` or `run` made; any other model as it is."""
    if isinstance(model, ModelRef):
        return model
    folder = expanded(model)
    if (folder / COMPRESS).is_file():
        with reading(folder / COMPRESS):
            record = read_json(folder / COMPRESS)
            chosen = [each for each in record["measured"] if each["name"] == record["chosen"]]
            return folder / chosen[0]["package"] if chosen else model
    package = folder / FORMATS["package"].folder
    return package if (folder / RECIPE).is_file() and package.is_dir() else model


def generation_settings(folder: Path) -> Any:
    """Return a package's generation settings: from their file, else from the config."""
    if not (settings := folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(known_config(folder))
    with reading(settings):
        return load_generation_config(folder)
