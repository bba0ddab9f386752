"""Weights in 8 bits, one scale a row. Pure. Shapes: O rows (outputs), I columns (inputs)."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from shears.errors import InputError

LARGEST = 127  # symmetric: -128 is never written


def quantize_rows(weight: Float[Tensor, "O I"]) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Return whole numbers q in -127..127 and float32 scales, weight ~ q * scale of the row; scale = max|w| / 127.

    A row whose scale is no normal number (all zeros, or as good as zero) has scale 0. InputError for NaN and infinity.
    """
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        raise InputError("weights must be finite to be quantized, got NaN or infinity; pack them as fp32 or bf16")
    largest = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(wide.shape[0])
    scales = largest / LARGEST
    scales = scales.where(scales >= torch.finfo(torch.float32).tiny, 0.0)
    steps = (wide / scales.where(scales > 0, 1.0)[:, None]).round_()
    return steps.clamp_(-LARGEST, LARGEST).to(torch.int8), scales


def dequantize_rows(steps: Int8[Tensor, "O I"], scales: Float[Tensor, " O"]) -> Float[Tensor, "O I"]:
    """Return steps * scale of the row, in float32."""
    return steps.float() * scales[:, None]
