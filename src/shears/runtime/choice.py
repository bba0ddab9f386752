"""Native decoder or transformers: every caller's choice is made here, with its reason.

Models of transformers and PEFT are imported where one is needed: a package in the decoder starts without them.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shears.checkpoints.package_file import Package
from shears.checkpoints.packed_layout import NumberFormat
from shears.models.devices import device_of
from shears.models.ref import ModelRef
from shears.runtime.backend import MOST_SEQUENCES, Backend
from shears.runtime.native import kernels_available
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.model_source import ModelSource, source_of_package

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

logger = logging.getLogger(__name__)
UNLIMITED = 1 << 24  # tokens of a text; rotary positions go on beyond a model's context, see `warn_beyond`


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of the native decoder."""

    backend: str = "auto"
    """auto, native (an error where the decoder does not cover the model) or transformers."""
    precision: str = "auto"
    """bf16: compute linears and head of a loaded model in bf16; else as they are."""
    max_sequences: int = MOST_SEQUENCES
    independent: bool = True
    """Texts of any length, no bit of which depends on the texts beside it."""
    obstacle: str = ""
    """Why the caller cannot use the decoder; empty if it can."""


def native_backend(model: nn.Module | Package, wanted: Wanted, *, consume: bool = False) -> "NativeBackend | None":
    """Return a model's native decoder; None, with the reason in the log, if transformers computes.

    If `consume`, weights move from a loaded model to the decoder, and the model computes nothing
    any more. Raise NotCoveredError, an InputError, if `backend` is native and the decoder does not
    cover the model.
    """
    if wanted.backend == "transformers":
        return None
    try:
        if wanted.obstacle:
            raise NotCoveredError(wanted.obstacle)
        if isinstance(model, Package):
            return _independent(source_of_package(model), wanted)
        if (device := device_of(model)).type != "cpu":
            raise NotCoveredError(f"the native decoder runs on the CPU, the model is on {device}")
        from shears.models.properties import own_model
        from shears.runtime.native.loaded_model import source_of_model

        plan_of(getattr(own_model(model), "config"))  # noqa: B009  (no field of Module)
        values: NumberFormat | None = "bf16" if wanted.precision == "bf16" else None
        return _independent(source_of_model(model, values, consume=consume), wanted, head=values)
    except NotCoveredError as error:
        if wanted.backend == "native":
            message = f"backend native must cover the model: {error}; use --backend transformers"
            raise NotCoveredError(message) from None
        logger.info("transformers computes: %s", error)
        return None


def _independent(source: ModelSource, wanted: Wanted, **limits: Any) -> "NativeBackend":
    limits = {"max_length": UNLIMITED, "for_evaluation": True, **limits} if wanted.independent else {}
    return decoder_of(source, max_sequences=min(wanted.max_sequences, MOST_SEQUENCES), **limits)


def package_backend(model: ModelRef, dtype: str = "auto") -> Backend:
    """Return the native decoder of a package where it covers the model, else transformers on dense weights."""
    native = native_backend(model.package, Wanted(independent=False))
    if native is not None:
        return native
    from shears.models.load import load_with_adapter
    from shears.runtime.transformers_backend import TransformersBackend

    return TransformersBackend(load_with_adapter(model, dtype=dtype, device="cpu")[0])


def decoder_of(source: ModelSource, **limits: Any) -> "NativeBackend":
    """Return the native decoder on all threads of torch; NotCoveredError without its kernels."""
    if not kernels_available():
        raise NotCoveredError("the native decoder needs the C++ kernels, which were not built")
    from shears.runtime.native.decoder import NativeBackend

    return NativeBackend(source, torch.get_num_threads(), **limits)
