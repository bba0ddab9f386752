"""From a model's name to an engine: the native decoder where it covers the model, or transformers.

Every caller's choice of the two is made here, with its reason. Models of transformers and PEFT are
imported where one is needed: a package in the decoder starts without them.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shears.checkpoints.package_file import Package
from shears.checkpoints.packed_layout import NumberFormat
from shears.checkpoints.without_code import known_config, load_generation_config
from shears.config.export_options import FORMATS
from shears.config.resolve import build
from shears.config.serve_options import RunningConfig
from shears.data.forms import trained_form
from shears.errors import reading
from shears.models.devices import device_of, set_threads
from shears.models.ref import AnyModel, ModelRef, end_tokens, load_tokenizer, resolve_with
from shears.records.artifacts import COMPRESS, RECIPE, read_json
from shears.records.paths import expanded
from shears.runtime.backend import MOST_SEQUENCES, Backend
from shears.runtime.engine import Engine
from shears.runtime.native import kernels_available
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.model_source import ModelSource, source_of_model, source_of_package

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

logger = logging.getLogger(__name__)
UNLIMITED = 1 << 24  # tokens of a text; rotary positions go on beyond a model's context


def load(model: AnyModel, adapter: str | Path | None = None, *, threads: int | None = None, **options: Any) -> Engine:
    """Return an engine for a package, or for a model with or without an adapter.

    The folder of `compress` or `run` stands for the package in it. Keywords are RunningConfig's.
    """
    wanted = build(RunningConfig, "", options)
    set_threads(threads)
    ref = resolve_with(package_in(model), adapter, wanted.dtype)
    if ref.is_package:
        backend: Backend = package_backend(ref, wanted.dtype, wanted.device)
        tokenizer = load_tokenizer(ref)
        settings = generation_settings(ref.folder)
    else:
        from shears.models.load import load_with_adapter
        from shears.runtime.transformers_backend import TransformersBackend

        network, tokenizer = load_with_adapter(ref, adapter, wanted.dtype, wanted.device)
        backend = TransformersBackend(network)
        settings = getattr(network, "generation_config", None)
    about = backend.describe()
    logger.info("%s runs on backend %s (%s, %s)", ref.name, about["name"], about["isa"], about["values"])
    if (form := trained_form(adapter, ref.folder)) is not None:
        told = "prompts get that format, and temperature defaults to 0"
        logger.info("%s was trained on %s; %s", ref.name, form.words, told)
    return Engine(backend, tokenizer, end_tokens(tokenizer, settings), form)


@dataclass(frozen=True)
class Wanted:
    backend: str = "auto"  # or native (an error where it does not cover the model), transformers
    precision: str = "auto"  # bf16: compute linears and head in bf16; else as they are
    max_sequences: int = MOST_SEQUENCES
    independent: bool = True  # texts of any length, no bit of which depends on the texts beside it
    obstacle: str = ""  # why the caller cannot use the decoder; empty if it can


def native_backend(model: nn.Module | Package, wanted: Wanted, *, consume: bool = False) -> "NativeBackend | None":
    """Return a model's native decoder; None, with the reason in the log, if transformers computes.

    If `consume`, weights move from a loaded model to the decoder, and the model computes nothing
    any more. NotCoveredError if `backend` is native and the decoder does not cover the model.
    """
    if wanted.backend == "transformers":
        return None
    try:
        if wanted.obstacle:
            raise NotCoveredError(wanted.obstacle)
        values: NumberFormat | None = None
        if isinstance(model, Package):
            source = source_of_package(model)
        else:
            if (device := device_of(model)).type != "cpu":
                raise NotCoveredError(f"the native decoder runs on CPUs, the model is on {device}")
            from shears.models.load import own_model

            plan_of(getattr(own_model(model), "config"))  # noqa: B009  (no field of Module)
            values = "bf16" if wanted.precision == "bf16" else None
            source = source_of_model(model, values, consume=consume)
        limits = {"max_length": UNLIMITED, "for_evaluation": True, "head": values} if wanted.independent else {}
        return decoder_of(source, max_sequences=min(wanted.max_sequences, MOST_SEQUENCES), **limits)
    except NotCoveredError as error:
        if wanted.backend == "native":
            rule = f"backend native must support the model, but {error}; use --backend transformers"
            raise NotCoveredError(rule) from None
        logger.info("using the transformers backend because %s", error)
        return None


def package_backend(model: ModelRef, dtype: str = "auto", device: str = "cpu") -> Backend:
    """Return a package's native decoder on a CPU where it covers the model, else transformers."""
    native = native_backend(model.package, Wanted(independent=False)) if device in ("auto", "cpu") else None
    if native is not None:
        return native
    from shears.models.load import load_with_adapter
    from shears.runtime.transformers_backend import TransformersBackend

    return TransformersBackend(load_with_adapter(model, dtype=dtype, device=device)[0])


def decoder_of(source: ModelSource, **limits: Any) -> "NativeBackend":
    """Return the native decoder on all threads of torch; NotCoveredError without its kernels."""
    if not kernels_available():
        raise NotCoveredError("the native decoder needs the C++ kernels, which were not built")
    from shears.runtime.native.decoder import NativeBackend

    return NativeBackend(source, torch.get_num_threads(), **limits)


def package_in(model: AnyModel) -> AnyModel:
    """Return the package in a folder that `compress` or `run` made; any other model as it is."""
    if isinstance(model, ModelRef):
        return model
    folder = expanded(model)
    if (folder / COMPRESS).is_file():
        with reading(folder / COMPRESS):
            record = read_json(folder / COMPRESS)
            return next((folder / n["package"] for n in record["measured"] if n["name"] == record["chosen"]), model)
    package = folder / FORMATS["package"].folder
    return package if (folder / RECIPE).is_file() and package.is_dir() else model


def generation_settings(folder: Path) -> Any:
    """Return a package's generation settings: from their file, else from the config."""
    if not (settings := folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(known_config(folder))
    with reading(settings):
        return load_generation_config(folder)
