"""Devices, precisions and threads that a model computes with."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from shears.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_THREADS = 1024


def pick_device(device: str) -> torch.device:
    """Return a device; auto is cuda, else mps, else cpu. InputError if this machine lacks it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = torch.device(device)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    num_devices = {"cpu": 1, "cuda": num_gpus, "mps": int(torch.backends.mps.is_available())}
    if (chosen.index or 0) >= num_devices.get(chosen.type, 0):
        raise InputError(f"device must be one that this machine has, got {device!r}; use auto or cpu")
    return chosen


def resolved_precision(precision: str, device: torch.device | str) -> Literal["fp32", "bf16", "fp16"]:
    """Return a precision; auto is bf16 where that is faster, else fp16 on CUDA, fp32 elsewhere."""
    kind = torch.device(device).type
    if precision == "fp16" and kind != "cuda":
        raise InputError(f"precision fp16 needs a CUDA device, got {kind}; use auto, bf16 or fp32")
    if precision == "auto":
        return "bf16" if bf16_is_faster(kind) else "fp16" if kind == "cuda" else "fp32"
    return "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"


def bf16_is_faster(kind: str) -> bool:
    """Tell whether bf16 products are faster than fp32 ones.

    AMX is, and so is AMD's AVX-512 (twice as fast on Zen 4); Intel's without AMX is slower.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
    is_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and is_amd))


def computing_dtype(precision: str, device: torch.device | str) -> Literal["fp32", "bf16", "fp16", "auto"]:
    """Return the `dtype` in which to load frozen weights; auto: the model's own.

    Forwards compute in it, so that none converts them; a CPU with bf16 converts as it multiplies.
    """
    chosen = resolved_precision(precision, device)
    return "auto" if (torch.device(device).type, chosen) == ("cpu", "bf16") else chosen


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context in which forwards compute in a precision, for weights of any dtype."""
    chosen = resolved_precision(precision, device)
    return nullcontext() if chosen == "fp32" else torch.autocast(torch.device(device).type, DTYPES[chosen])


def narrow_linears(model: nn.Module, precision: str) -> None:
    """Convert a CPU model's frozen linears to autocast's format, so that it converts none again.

    Results have the same bits. The head, which may share the embeddings, stays as it is.
    """
    if device_of(model).type != "cpu" or (held := resolved_precision(precision, "cpu")) == "fp32":
        return
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if type(module) is nn.Linear and module is not head and not module.weight.requires_grad:
            module.to(DTYPES[held])


def widen_norms(model: nn.Module) -> list[nn.Module]:
    """Convert the fp16 LayerNorms of a model on a CPU to fp32, without loss, and return them.

    The CPU's kernel accepts fp16 weights with fp16 inputs only, and autocast gives it bf16 ones.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine]
    half = [norm for norm in norms if (norm.weight.dtype, norm.weight.device.type) == (torch.float16, "cpu")]
    return [norm.float() for norm in half]


def set_threads(count: int | None) -> None:
    """Set the number of CPU threads, 1 to MOST_THREADS; None keeps torch's, one a core."""
    if count is not None and not 1 <= count <= MOST_THREADS:
        raise InputError(f"threads must be 1 to {MOST_THREADS}, got {count}; leave it out for one thread per core")
    if count is not None:
        torch.set_num_threads(count)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
