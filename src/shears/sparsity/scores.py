"""How little a weight matters: the scores that weights of one output row compete by.

Shapes: O output features, I input features of a linear. To add a score, write its function and one line of SCORES.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


def wanda_scores(weight: Float[Tensor, "O I"], input_norm: Float[Tensor, " I"]) -> Float[Tensor, "O I"]:
    """Return |W_oi| * ||X_i||_2 in float32 (Wanda, arXiv 2306.11695, eq. 1)."""
    return weight.detach().float().abs() * input_norm.to(weight.device).float()


def magnitude_scores(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """Return |W_oi| in float32."""
    return weight.detach().float().abs()


@dataclass(frozen=True)
class Score:
    """A score as a function of (weight, input_norm), and whether it looks at the norms, so whether a walk is needed."""

    compute: Callable[[Float[Tensor, "O I"], Float[Tensor, " I"]], Float[Tensor, "O I"]]
    needs_inputs: bool


SCORES: Mapping[str, Score] = {
    "wanda": Score(wanda_scores, needs_inputs=True),
    "magnitude": Score(lambda weight, _: magnitude_scores(weight), needs_inputs=False),
}
