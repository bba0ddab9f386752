"""The Trainer of healing: losses against a teacher, checkpoints of what is trained alone.

K positions that predict a token.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from shears.config import HealConfig
from shears.data.example import IGNORED
from shears.healing.linears import refresh
from shears.training.distillation import Distribution, losses_behind_head
from shears.training.losses import labelled_positions
from shears.training.targets import Teacher
from shears.training.trainer import StepTrainer, num_tokens

TRAINED = "trained.safetensors"  # in a checkpoint


class HealingTrainer(StepTrainer):
    """A trainer whose loss is the weighted sum of the distances from a teacher, averaged over the step's tokens.

    Checkpoints hold the trained parameters, not the frozen ones.
    """

    def __init__(self, *, teacher: Teacher, settings: HealConfig, **kwargs: Any) -> None:
        self.teacher = teacher
        self.settings = settings
        super().__init__(**kwargs)
        self.add_callback(_Refresh())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed loss of this forward over the number of predicted tokens in the whole step."""
        batch = {name: tensor for name, tensor in inputs.items() if name != "numbers"}
        wanted = labelled_positions(batch["labels"])
        counts = batch["labels"].roll(-1, dims=1)[wanted] != IGNORED  # all, unless this forward has no label
        total = max(int(num_items_in_batch if num_items_in_batch is not None else counts.sum()), 1)
        processes = self.accelerator.num_processes
        targets = self.teacher.targets(inputs, wanted)
        with self.accelerator.autocast():
            losses = self._head_losses(model, batch, targets, processes / total * self._scaler_scale())
        summed = (losses * counts).sum()
        self.step_loss += summed.item() / total
        self.step_tokens += num_tokens(inputs)
        # DDP averages the gradients of the processes, and the step's loss is their sum
        scaled: Tensor = summed / total * processes
        return scaled

    def _head_losses(
        self, model: nn.Module, batch: Mapping[str, Tensor], targets: Distribution, scale: float
    ) -> Float[Tensor, " K"]:
        labels = batch["labels"]
        words = labels.roll(-1, dims=1)[labelled_positions(labels)]

        def loss(logits: Float[Tensor, "P V"], rows: slice) -> Float[Tensor, " P"]:
            divergence = targets.divergence(logits, rows)
            total = self.settings.kl * divergence
            if self.settings.cross_entropy:
                likelihood = nn.functional.cross_entropy(
                    logits.float(), words[rows], ignore_index=IGNORED, reduction="none"
                )
                total = total + self.settings.cross_entropy * likelihood
            return total

        return losses_behind_head(model, batch, loss, scale, in_pieces=self.in_pieces).losses

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained; frozen weights are in the sparse model's folder."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().contiguous() for name, parameter in _trained(self.model)}
        save_file(tensors, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.model, Path(resume_from_checkpoint))


class _Refresh(TrainerCallback):
    """Lets the model compute with its trained weights after every step; a resumed one does so from the start."""

    def on_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        refresh(kwargs["model"])


def restore(model: Any, checkpoint: Path) -> None:
    """Give a model what was trained until a checkpoint."""
    tensors = load_file(checkpoint / TRAINED)
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(tensors[name])
    refresh(model)


def _trained(model: Any) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
