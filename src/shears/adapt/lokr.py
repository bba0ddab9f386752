"""LoKr: a weight's update as a Kronecker product, its second factor of low rank, elastic.

y = W x + scaling * (w1 kron (w2_a w2_b)) x, with w1 (L M), w2_a (K R) and w2_b (R N). An output is
at l * K + k, an input at m * N + n.

Shapes: L K outputs, M N inputs, R ranks; O = L * K, I = M * N; * any leading dimensions.
"""

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lokr import Linear as LoKrLinear
from torch import Tensor

from shears.models.sparse_adapter import MASK


class ElasticLoKr(LoKrLinear):  # type: ignore[misc]
    """PEFT's LoKr layer that masks the ranks of w2 and multiplies by one factor after the other.

    PEFT's own forward builds the whole O x I update in every forward. Made by `ElasticAdapter`,
    which changes the class of PEFT's layers only; the mask is a buffer of the layer.
    """

    elastic_adapter: str

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs; adapters other than the elastic one are computed by PEFT."""
        if self.disable_adapters or self.merged or self.active_adapters != [self.elastic_adapter]:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        outputs: Tensor = self.base_layer(x, *args, **kwargs)
        return (outputs + self._update(x)).to(x.dtype)

    def num_macs(self, rank: int) -> int:
        """Return the multiply-accumulates of a token in `forward`, without those of the base."""
        w1 = self.lokr_w1[self.elastic_adapter]
        inputs = w1.shape[1]
        outputs_of_w2 = len(self.lokr_w2_a[self.elastic_adapter])
        return int(rank * (self.in_features + inputs * outputs_of_w2) + w1.numel() * outputs_of_w2)

    def _update(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        w1 = self.lokr_w1[self.elastic_adapter]
        w2_a = self.lokr_w2_a[self.elastic_adapter]
        w2_b = self.lokr_w2_b[self.elastic_adapter]
        parts = self._cast_input_dtype(x, w1.dtype).unflatten(-1, (w1.shape[1], w2_b.shape[1]))
        hidden = torch.nn.functional.linear(parts, w2_b)  # * M R
        hidden = hidden * self.get_buffer(MASK).to(hidden.dtype)
        by_input = torch.nn.functional.linear(hidden, w2_a)  # * M K
        update = torch.einsum("lm,...mk->...lk", w1, by_input).flatten(-2)
        scaled: Tensor = update * self.scaling[self.elastic_adapter]
        return scaled
