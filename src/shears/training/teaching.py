"""The loss of a training with a teacher: that of the labels, and the divergence from what the teacher predicts.

K positions that predict a label, V words of the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shears.data.example import IGNORED
from shears.training.distillation import Distribution, losses_behind_head
from shears.training.losses import TokenLosses, labelled_positions
from shears.training.targets import Teacher


@dataclass(frozen=True)
class Teaching:
    """(1 - weight) times the labels' loss plus weight times the Kullback-Leibler divergence, at every label."""

    teacher: Teacher
    weight: float

    def losses(self, model: nn.Module, inputs: Mapping[str, Tensor], scale: float, *, in_pieces: bool) -> TokenLosses:
        """Return the losses of a batch of `trainer.Collator`, each to be differentiated with the weight `scale`.

        0 where there is no label. `in_pieces` as in `distillation.losses_behind_head`.
        """
        wanted = labelled_positions(inputs["labels"])
        targets = inputs["labels"].roll(-1, dims=1)[wanted]
        distribution = self.teacher.targets(inputs, wanted)

        def loss(logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
            return self._mixed(logits, targets[rows], distribution, rows)

        batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
        return losses_behind_head(model, batch, loss, scale, in_pieces=in_pieces)

    def _mixed(
        self, logits: Float[Tensor, "P V"], targets: Int[Tensor, " P"], distribution: Distribution, rows: slice
    ) -> Float[Tensor, " P"]:
        labels = nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
        divergence = torch.where(targets == IGNORED, 0.0, distribution.divergence(logits, rows))
        return (1 - self.weight) * labels + self.weight * divergence
