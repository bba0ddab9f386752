"""How little a weight matters: the scores that weights compete by, lowest first to go.

Shapes: O output features, I input features of a linear. To add a score, write its function and one line of SCORES.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def wanda_scores(weight: Float[Tensor, "O I"], input_norm: Float[Tensor, " I"]) -> Float[Tensor, "O I"]:
    """Return |W_oi| * ||X_i||_2 in float32 (Wanda, arXiv 2306.11695, eq. 1)."""
    return weight.detach().float().abs() * input_norm.to(weight.device).float()


def magnitude_scores(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """Return |W_oi| in float32."""
    return weight.detach().float().abs()


def ria_scores(
    weight: Float[Tensor, "O I"], input_norm: Float[Tensor, " I"], alpha: float = 0.5
) -> Float[Tensor, "O I"]:
    """Return (|W_oi| / sum of its row + |W_oi| / sum of its column) * ||X_i||_2^alpha in float32.

    Relative importance and activations ("Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models", ICLR 2024, section 4). Weights of a row or column of zeros score 0.
    """
    size = magnitude_scores(weight)
    tiny = torch.finfo(torch.float32).tiny  # keeps 0 / 0 at 0
    relative = size / size.sum(1, keepdim=True).clamp_min(tiny) + size / size.sum(0, keepdim=True).clamp_min(tiny)
    return relative * input_norm.to(weight.device).float() ** alpha


@dataclass(frozen=True)
class Score:
    """A score as a function of (weight, input_norm), and whether it looks at the norms, so whether a walk is needed."""

    compute: Callable[[Float[Tensor, "O I"], Float[Tensor, " I"]], Float[Tensor, "O I"]]
    needs_inputs: bool


SCORES: Mapping[str, Score] = {
    "wanda": Score(wanda_scores, needs_inputs=True),
    "magnitude": Score(lambda weight, _: magnitude_scores(weight), needs_inputs=False),
    "ria": Score(ria_scores, needs_inputs=True),
}
