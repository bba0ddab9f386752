"""The validation loss of a training, when to stop, and which weights to keep.

The loss is the mean over all labelled tokens, without dropout. It draws no random number and leaves
the model as it was, so that a training with validation makes the steps of one without. What follows
is a function of the losses in the training log, so that a resumed training decides as an
undisturbed one.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn

from shears.data.examples import Tokenized
from shears.errors import InputError, reading
from shears.records.artifacts import sync_path
from shears.training.batches import length_buckets
from shears.training.checkpoints import last_steps
from shears.training.processes import reshard
from shears.training.trainer import StepTrainer, TrainedWeights

VALIDATION_LOSS = "validation_loss"  # key in the training log


@dataclass(frozen=True)
class ValidationLosses:
    """The validation losses by step; `patience` of them without a lower one end a training."""

    by_step: Mapping[int, float]
    patience: int | None = None

    @property
    def best(self) -> int | None:
        """Return the first step of the lowest loss; None before the first validation."""
        return min(self.by_step, key=lambda step: (self.by_step[step], step), default=None)

    @property
    def is_over(self) -> bool:
        """Tell whether the patience is exhausted."""
        if self.best is None or self.patience is None:
            return False
        return sum(step > self.best for step in self.by_step) >= self.patience

    def until(self, last: int) -> "ValidationLosses":
        """Return the losses up to a step."""
        return ValidationLosses({step: loss for step, loss in self.by_step.items() if step <= last}, self.patience)


def read_losses(log: Path, patience: int | None = None) -> ValidationLosses:
    """Return the validation losses in a training log, which may not exist yet."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    with reading(log):
        lines = [json.loads(line) for line in text.splitlines()]
        losses = {int(line["step"]): float(line[VALIDATION_LOSS]) for line in lines if VALIDATION_LOSS in line}
    return ValidationLosses(losses, patience)


@dataclass(frozen=True)
class Validation:
    """Examples to validate on, after how many steps, and when to stop early, if ever.

    `state` is a context in which the model computes what is validated, such as the largest ranks.
    """

    rows: Sequence[Tokenized]
    every: int
    last: int
    patience: int | None
    state: Callable[[], AbstractContextManager[None]]

    def is_due(self, step: int) -> bool:
        """Tell whether the weights are validated after a step."""
        return step % self.every == 0 or step == self.last


class Validator:
    """Measures the validation loss when it is due, and keeps the weights of the lowest."""

    def __init__(self, trainer: StepTrainer, validation: Validation, losses: ValidationLosses) -> None:
        self.trainer = trainer
        self.validation = validation
        self.losses = losses
        self.folder = Path(str(trainer.args.output_dir))

    def validate(self, step: int) -> float:
        """Return the loss after a step; InputError, in all processes, if it is not finite."""
        loss = self.loss()
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss must be finite, got {loss} after step {step}; train to another output with a "
                "lower learning rate"
            )
        self.losses = ValidationLosses({**self.losses.by_step, step: loss}, self.losses.patience)
        if self.losses.patience is not None and self.losses.best == step and self.trainer.args.process_index == 0:
            self._keep(step)
        return loss

    def loss(self) -> float:
        """Return the mean loss of a labelled token over the batches of all processes."""
        model = own_module(self.trainer)
        was_training = model.training
        model.eval()
        try:
            with self.validation.state(), torch.no_grad(), self.trainer.compute_loss_context_manager():
                sums = self._sums()
        finally:
            model.train(was_training)
            reshard(model)
        ordered = [figures for _, figures in sorted(sums)]
        return sum(loss for loss, _ in ordered) / sum(tokens for _, tokens in ordered)

    def _sums(self) -> list[tuple[int, tuple[float, int]]]:
        """Return the summed loss and the labelled tokens of each batch, with its number.

        Processes take batches in turn, as many each: a sharded model needs all of them in every
        forward.
        """
        batches = length_buckets(
            [len(row.input_ids) for row in self.validation.rows], self.trainer.args.train_batch_size
        )
        processes = self.trainer.accelerator.num_processes
        first = self.trainer.accelerator.process_index
        own = [
            (number, self._figures(batches[number % len(batches)]))
            for number in range(first, first + -(-len(batches) // processes) * processes, processes)
        ]
        parts = own if processes == 1 else gather_object(own)
        return [(number, figures) for number, figures in parts if number < len(batches)]

    def _figures(self, indices: Sequence[int]) -> tuple[float, int]:
        assert self.trainer.data_collator is not None
        numbered: list[Any] = [(index, self.validation.rows[index]) for index in indices]
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(numbered))
        losses, counts = self.trainer.example_losses(own_module(self.trainer), inputs)
        return losses.double().sum().item(), int(counts.sum())

    def _keep(self, step: int) -> None:
        """Write the weights; delete those that no checkpoint would need in a resumed training."""
        tensors = self.trainer.weights.tensors()
        path = best_file(self.folder, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        sync_path(temporary)
        os.replace(temporary, path)
        needed = {step, *(self.losses.until(last).best for last in last_steps(self.folder))}
        for other in self.folder.glob("best-*.safetensors"):
            if other not in {best_file(self.folder, kept) for kept in needed if kept is not None}:
                other.unlink()


def own_module(trainer: StepTrainer) -> nn.Module:
    """Return the model of a trainer without the wrappers that only a step needs."""
    assert trainer.model is not None
    return trainer.model


def best_file(folder: Path, step: int) -> Path:
    """Return the file of weights that had the lowest loss when it was validated."""
    return folder / f"best-{step}.safetensors"


def restore_best(weights: TrainedWeights, folder: Path, losses: ValidationLosses) -> None:
    """Give a model the weights with the lowest validation loss."""
    assert losses.best is not None
    weights.load(load_file(best_file(folder, losses.best)))
