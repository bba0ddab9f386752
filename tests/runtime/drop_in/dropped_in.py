"""Models whose linears the tests swap, and the two ways of multiplying."""

from typing import Any

import torch
from torch import nn

from shears.models.blocks import linears
from tests.tiny import tiny_model


def sparse_model(name: str = "llama", dtype: torch.dtype = torch.float32, biases: bool = False) -> nn.Module:
    """A tiny model, three quarters of its blocks' linear weights +0.0."""
    model, generator = tiny_model(name), torch.Generator().manual_seed(1)
    for linear in linears(model.base_model).values():
        weight = linear.get_parameter("weight").data
        weight[torch.rand(weight.shape, generator=generator) < 0.75] = 0.0
        if biases and isinstance(linear, nn.Linear):
            linear.bias = nn.Parameter(torch.randn(linear.out_features, generator=generator))
    return nn.Module.to(model, dtype)


def near(path: str, values: str = "fp32") -> dict[str, Any]:
    """How far two ways of multiplying may lie apart."""
    return {"rtol": 0, "atol": {"fp32": 1e-5, "bf16": 0.03}[values] if path == "kernels" or values == "bf16" else 1e-6}
