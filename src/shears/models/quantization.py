"""Quantize the linears of a frozen model to 4 or 8 bits with bitsandbytes while adapters are trained on it.

Zeros stay zeros: both number formats contain an exact zero, the nearest value of a weight that is zero.
"""

import importlib.util
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from shears.checkpoints.tensor_files import quantized_by
from shears.errors import InputError
from shears.models.ref import ModelRef

Form = Literal["nf4", "int8"]
PACKAGE = "bitsandbytes"
REPACKS = "support_avx512bf16_for_cpu"
BITS = MappingProxyType({"nf4": 4.5, "int8": 8.0})
"""Bits of a weight; nf4 has an fp32 scale for every 64 weights."""


def quantization_config(form: Form, compute: torch.dtype) -> BitsAndBytesConfig:
    """Return transformers' configuration for quantizing a model while loading; nf4 multiplies in `compute`.

    InputError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"quantize {form} needs the package {PACKAGE}, which is not installed; pip install 'shears[quantize]'"
        )
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def loading_options(ref: ModelRef, quantization: BitsAndBytesConfig, device: torch.device) -> dict[str, Any]:
    """Return the options of `from_pretrained` that quantize a model onto a device; InputError where it cannot be.

    Of several GPUs, the device is the one this process uses.
    """
    method = quantized_by(ref.folder)
    kind = "a package" if ref.is_package else f"quantized by {method}" if method else ""
    if kind:
        raise InputError(
            f"a model to quantize must be a folder of plain weights, {ref.name} is {kind}; leave quantize out"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return {"quantization_config": quantization, "device_map": {"": device}}


def keep_as_quantized(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at their first use without gradients, as it does on some CPUs.

    Repacking rounds the scales to bf16 for good, and models are run once without gradients before training.
    """
    for module in model.modules():
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
