"""Order a trained adapter's components by size, so that the first r of them are the best of rank r.

Shapes: R rank, O output and I input features of a linear.
"""

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from shears.adapt.elastic import lora_layers


@torch.no_grad()
def reorder(model: PeftModel, adapter: str = "default") -> None:
    """Put the singular value decomposition of every B A in the place of B and A, in place; the product stays.

    Of all adapters of a smaller rank, the first r components then have the nearest product (Eckart and Young). Both
    vectors of a component are equally long.
    """
    for _, layer in lora_layers(model, adapter):
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        ordered_a, ordered_b = by_size(a, b)
        a.copy_(ordered_a)
        b.copy_(ordered_b)


def by_size(a: Float[Tensor, "R I"], b: Float[Tensor, "O R"]) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
    """Return A and B with the same product, its singular values falling, each value's root in both.

    Computed in float64 from the R x R core between two orthonormal bases; where R exceeds O or I, the rest is zero.
    """
    left, left_core = torch.linalg.qr(b.double())
    right, right_core = torch.linalg.qr(a.double().T)
    turn, values, turn_back = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    count, roots = len(values), values.sqrt()
    ordered_a, ordered_b = torch.zeros_like(a), torch.zeros_like(b)
    ordered_a[:count] = ((right @ turn_back.T) * roots).T.to(a.dtype)
    ordered_b[:, :count] = ((left @ turn) * roots).to(b.dtype)
    return ordered_a, ordered_b
