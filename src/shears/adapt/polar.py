"""PoLAR: LoRA with orthonormal directions X, Y and a small core C between (arXiv 2506.03133).

A linear computes (W + scaling * X C Y^T) x. PEFT's `lora_A` holds Y^T and `lora_B` holds X C, both
by torch's parametrizations, so that masks, SparsePEFT and checkpoints read and train them as those
of LoRA. A mask of the first r ranks behind `lora_A` keeps the first r columns of C, which is what
remains when B = X C and A = Y^T are cut (decision 57).

Shapes: R rank, O output and I input features of a linear.
"""

import random
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from shears.adapt.elastic import lora_layers
from shears.errors import InputError


class Core(nn.Module):
    """The parametrization of B by directions: B = X C."""

    def __init__(self, core: Float[Tensor, "R R"]) -> None:
        super().__init__()
        self.core = nn.Parameter(core)

    def forward(self, directions: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        """Return B."""
        return directions @ self.core


def make_polar(
    model: PeftModel,
    seed: int,
    adapter: str = "default",
    *,
    roots: Mapping[str, Float[Tensor, " R"]] = MappingProxyType({}),
) -> None:
    """Write every B A as X C Y^T, in place; Householder's reflections hold X, Y orthonormal.

    Y are the orthonormalized rows of A, so that rank r begins as B A restricted to the first r rows
    of A: the cut of B A itself where these are orthogonal. Where B is zero, X gets random
    directions, a function of the seed. `roots` are those of the diagonal of nested training by
    linear (`ElasticAdapter.roots`): C is divided by the diagonal, so that the product with it is B
    A. `fold_polar` is the inverse. InputError, before any layer is changed, if a rank exceeds the
    outputs or the inputs of a linear.
    """
    layers = dict(lora_layers(model, adapter))
    for name, layer in layers.items():
        rank, inputs = layer.lora_A[adapter].weight.shape
        most = min(inputs, layer.lora_B[adapter].weight.shape[0])
        if rank > most:
            raise InputError(
                f"ranks of adapter polar must be at most {most}, the orthonormal directions of {name}, got {rank}; "
                "lower the largest rank"
            )
    generator = torch.Generator().manual_seed(random.Random(f"polar/{seed}").getrandbits(63))
    for name, layer in layers.items():
        core = _parametrize(layer.lora_A[adapter], layer.lora_B[adapter], generator)
        if name in roots:
            core.div_(roots[name].to(core) ** 2)


@torch.no_grad()
def _parametrize(linear_a: nn.Linear, linear_b: nn.Linear, generator: torch.Generator) -> Float[Tensor, "R R"]:
    """Return the core of a new parametrization, without its gradient."""
    a, b = linear_a.weight, linear_b.weight
    rows, triangle = torch.linalg.qr(a.double().T)
    b_of_rows = b.double() @ triangle.T  # B A = (B L) Y^T with A = L Y^T
    noise = torch.randn(b.shape, generator=generator, dtype=torch.float64).to(b.device)
    columns, _ = torch.linalg.qr(torch.where(b_of_rows.any(0), b_of_rows, noise))
    core = columns.T @ b_of_rows
    a.copy_(rows.T)
    b.copy_(columns)
    for linear in (linear_a, linear_b):
        # a trivialization would hold a square matrix of the features for every linear
        orthogonal(linear, orthogonal_map="householder", use_trivialization=False)
    parametrization = Core(core.to(b))
    register_parametrization(linear_b, "weight", parametrization)
    return parametrization.core.data


def fold_polar(model: PeftModel, adapter: str = "default") -> None:
    """Make the adapter plain LoRA, B = X C and A = Y^T, in place; a plain one stays."""
    parts = chain.from_iterable(
        (layer.lora_A[adapter], layer.lora_B[adapter]) for _, layer in lora_layers(model, adapter)
    )
    for part in parts:
        if is_parametrized(part, "weight"):
            remove_parametrizations(part, "weight")
