"""From a model's name to an engine.

A package runs in the native decoder or on packed linears, any other model in transformers.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shears.checkpoints.conversion import LOADING_ERRORS, known_config
from shears.checkpoints.packed.layout import NumberFormat
from shears.checkpoints.without_code import load_generation_config
from shears.config.resolve import build
from shears.config.serve import RunningConfig
from shears.errors import InputError, first_line
from shears.models.devices import device_of, set_threads
from shears.models.load import end_tokens, load_tokenizer, load_with_adapter
from shears.models.properties import own_model
from shears.models.ref import AnyModel, ModelRef, resolve_with
from shears.runtime.drop_in.swap import DropInBackend
from shears.runtime.generation.backend import MOST_SEQUENCES, Backend
from shears.runtime.generation.engine import Engine
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.native import kernels_available
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.model_source import ModelSource, source_of_model, source_of_package

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

logger = logging.getLogger(__name__)
LONGEST = 1 << 24  # tokens of a text; rotary positions go on beyond a model's context, of which `warn_beyond` tells


def load(model: AnyModel, adapter: str | Path | None = None, *, threads: int | None = None, **options: Any) -> Engine:
    """Return an engine for a package, or for a model by any name with or without an adapter.

    Keywords are those of RunningConfig (`backend`, `dtype`, `device`). InputError if there is no such model, or if the
    backend cannot run it.
    """
    wanted = build(RunningConfig, "", options)
    set_threads(threads)
    ref = resolve_with(model, adapter, wanted.dtype)
    backend: Backend
    if ref.is_package:
        if adapter is not None:
            raise InputError(
                f"a package comes with its adapter, got adapter={adapter} beside {ref.folder}; unpack it first"
            )
        backend = package_backend(ref, wanted)
        tokenizer = load_tokenizer(ref)
        settings = generation_settings(ref.folder)
    elif wanted.backend == "auto":
        network, tokenizer = load_with_adapter(ref, adapter, wanted.dtype, wanted.device)
        backend = TransformersBackend(network)
        settings = getattr(network, "generation_config", None)
    else:
        raise InputError(
            f"backend {wanted.backend} needs a package, {ref.name} is another model; run shears export --format package"
        )
    about = backend.describe()
    plural = "" if about["threads"] == 1 else "s"
    details = f"{about['isa']}, {about['values']}, {about['threads']} thread{plural}"
    logger.info("%s runs on %s (%s)", ref.name, about["name"], details)
    return Engine(backend, tokenizer, end_tokens(tokenizer, settings))


def package_backend(model: ModelRef, wanted: RunningConfig) -> Backend:
    """Return the backend of a package; `auto` is the native decoder if it was built and covers the model."""
    if wanted.backend == "drop-in":
        return DropInBackend(model, dtype=wanted.dtype)
    if kernels_available():
        from shears.runtime.native.decoder import NativeBackend

        try:
            return NativeBackend(source_of_package(model.package), torch.get_num_threads())
        except NotCoveredError as error:
            if wanted.backend == "native":
                raise
            logger.info("%s: %s; transformers runs it, with packed linears", model.folder, error)
    elif wanted.backend == "native":
        raise InputError("backend native needs the C++ kernels, which were not built; use backend drop-in")
    return DropInBackend(model, dtype=wanted.dtype)


def native_backend_of(
    model: nn.Module, precision: str, max_sequences: int, *, consume: bool = False
) -> "NativeBackend":
    """Return the native decoder of a loaded model; NotCoveredError, with the reason, where it cannot compute it.

    Its linears and its head are in the arithmetic that transformers would compute in, so that both read equal weights.
    If `consume`, weights move from the model to the decoder, and the model computes nothing any more.
    """
    if device_of(model).type != "cpu":
        raise NotCoveredError(f"the native decoder runs on the CPU, the model is on {device_of(model)}")
    if not kernels_available():
        raise NotCoveredError("the native decoder needs the C++ kernels, which were not built")
    plan_of(getattr(own_model(model), "config"))  # noqa: B009  (no field of Module)
    values: NumberFormat | None = "bf16" if precision == "bf16" else None
    return measuring_backend(source_of_model(model, values, consume=consume), max_sequences, values)


def measuring_backend(source: ModelSource, max_sequences: int, head: NumberFormat | None = None) -> "NativeBackend":
    """Return the native decoder for up to `max_sequences` texts, no bit of which depends on the texts beside it."""
    from shears.runtime.native.decoder import NativeBackend

    return NativeBackend(
        source,
        torch.get_num_threads(),
        max_length=LONGEST,
        max_sequences=min(max_sequences, MOST_SEQUENCES),
        head=head,
        for_evaluation=True,
    )


def generation_settings(folder: Path) -> Any:
    """Return a package's generation settings as transformers reads them: from their file, else from the config."""
    settings = folder / "generation_config.json"
    if not settings.is_file():
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(known_config(folder))
    try:
        return load_generation_config(folder)
    except LOADING_ERRORS as error:
        raise InputError(f"{settings} must hold settings of transformers: {first_line(error)}") from error
