"""Small pruning problems in float64, and their factor by the textbook's way."""

import torch
from torch import Tensor

from tests.oracles import obs

DAMPING = 0.01


def problem(seed: int, outputs: int, inputs: int, tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Return a weight and the second moments of correlated inputs of very different sizes, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    mixing *= torch.rand(inputs, generator=generator, dtype=torch.float64) * 3
    inputs_seen = torch.randn(tokens or 4 * inputs, inputs, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), inputs_seen.T @ inputs_seen


def exact_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the factor by the textbook's way: invert, then factorise."""
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(obs.damped(hessian, damping)), upper=True)
    return factor
