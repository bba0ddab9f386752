"""QA-SparsePEFT restated literally in float64, weight by weight; knows nothing of shears.

Q_oi = s (clamp(round(u) + z, 0, 15) - z) with u = (W_oi + P_oi) / s, s and z of row o and block i // 128 (i // 32 in
Q4_0), and P_oi = scaling * sum_r B_or m_r A_ri where W_oi != 0, else 0. Straight through: dQ/dP is 1 inside of the
clamp, else 0; dQ/ds is round(u) - u inside, else the clamped step.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Result(NamedTuple):
    """Outputs and weights, and gradients of sum(outputs * cotangent)."""

    outputs: Tensor
    weights: Tensor
    x: Tensor
    a: Tensor
    b: Tensor
    scales: Tensor


def linear(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    grid: tuple[Tensor, Tensor],
    factors: Tensor,
    cotangent: Tensor,
    block: int = 128,
) -> Result:
    """Return what a linear without bias gives for `tensors` = (x, W, A, B) and a factor scaling * m by rank."""
    x, weight, a, b = (tensor.detach().double() for tensor in tensors)
    scales, zeros = grid[0].double(), grid[1].long()
    whole = torch.zeros_like(weight)
    passes = torch.zeros_like(weight)
    by_scale = torch.zeros_like(weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            scale, zero = float(scales[o, i // block]), int(zeros[o, i // block])
            if weight[o, i] == 0 or scale == 0:
                continue
            update = sum(float(factors[r] * b[o, r] * a[r, i]) for r in range(a.shape[0]))
            u = (float(weight[o, i]) + update) / scale
            code = round(u) + zero
            inside = 0 <= code <= 15
            step = min(max(code, 0), 15) - zero
            whole[o, i] = scale * step
            passes[o, i] = float(inside)
            by_scale[o, i] = step - u if inside else step
    rows, incoming = cotangent.double().reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
    of_whole = rows.T @ incoming
    of_update = of_whole * passes
    blocks = range(0, weight.shape[1], block)
    return Result(
        x @ whole.T,
        whole,
        (rows @ whole).reshape(x.shape),
        (b * factors).T @ of_update,
        (of_update @ a.T) * factors,
        torch.stack([(of_whole * by_scale)[:, start : start + block].sum(1) for start in blocks], 1),
    )
