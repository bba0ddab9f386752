"""Where a model computes and in which number format: devices, precisions, threads."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from shears.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_THREADS = 1024


def pick_device(device: str) -> torch.device:
    """Return the device meant: auto is cuda, else mps, else cpu; InputError where it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    place = torch.device(device)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cpu": True, "cuda": (place.index or 0) < cards, "mps": torch.backends.mps.is_available()}
    if not there.get(place.type, False):
        raise InputError(f"device must be one that this machine has, got {device!r}; use auto or cpu")
    return place


def resolved_precision(precision: str, device: torch.device | str) -> Literal["fp32", "bf16", "fp16"]:
    """Return the arithmetic meant: auto is bf16 where the processor has it in hardware, else fp32."""
    kind = torch.device(device).type
    if precision == "fp16" and kind != "cuda":
        raise InputError(f"precision fp16 needs a CUDA device, got {kind}; use auto, bf16 or fp32")
    if precision == "auto":
        return "bf16" if _has_bf16(kind) else "fp32"
    return "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"


def _has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which forwards run in the given precision over weights of any other."""
    chosen = resolved_precision(precision, device)
    return nullcontext() if chosen == "fp32" else torch.autocast(torch.device(device).type, DTYPES[chosen])


def keep_casts(model: nn.Module) -> None:
    """Have autocast cast frozen weights once, not at every forward (it keeps casts of trained ones); no gradients."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def widen_norms(model: nn.Module) -> list[nn.Module]:
    """Hold the fp16 LayerNorms of a model on a CPU in fp32, and return them; their values stay as they are.

    The CPU's kernel takes fp16 weights beside fp16 inputs only, and under bf16 autocast its inputs are of others.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine]
    half = [norm for norm in norms if (norm.weight.dtype, norm.weight.device.type) == (torch.float16, "cpu")]
    return [norm.float() for norm in half]


def set_threads(count: int | None) -> None:
    """Use that many CPU threads; None leaves torch's choice, one a core. InputError for more than MOST_THREADS."""
    if count is not None and not 1 <= count <= MOST_THREADS:
        raise InputError(f"threads must be 1 to {MOST_THREADS}, got {count}; leave them out for one a core")
    if count is not None:
        torch.set_num_threads(count)


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next(model.parameters()).device
