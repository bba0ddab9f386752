"""The validation loss of a training, and what follows from it: when to stop, and which adapter to keep.

The loss is the mean over all labelled tokens at the largest ranks, without dropout. It draws no random number and
leaves the active ranks as they were, so that a training with validation makes the steps of one without. What follows
is a function of the losses in the training log, so that a resumed training decides as an undisturbed one.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from shears.data.examples import Tokenized
from shears.errors import InputError
from shears.records.artifacts import sync_path
from shears.training.batches import length_buckets
from shears.training.checkpoints import last_steps
from shears.training.processes import reshard
from shears.training.trainer import CompletionTrainer

VALIDATION_LOSS = "validation_loss"  # key in the training log


@dataclass(frozen=True)
class Losses:
    """The validation losses by step; after `patience` of them without a lower one, a training is over."""

    by_step: Mapping[int, float]
    patience: int | None = None

    @property
    def best(self) -> int | None:
        """Return the step of the lowest loss, the first of equal ones; None before the first validation."""
        return min(self.by_step, key=lambda step: (self.by_step[step], step), default=None)

    @property
    def is_over(self) -> bool:
        """Tell whether the patience is exhausted."""
        if self.best is None or self.patience is None:
            return False
        return sum(step > self.best for step in self.by_step) >= self.patience

    def until(self, last: int) -> "Losses":
        """Return the losses up to a step."""
        return Losses({step: loss for step, loss in self.by_step.items() if step <= last}, self.patience)


def read_losses(log: Path, patience: int | None = None) -> Losses:
    """Return the validation losses in a training log, which may not exist yet."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return Losses({line["step"]: line[VALIDATION_LOSS] for line in lines if VALIDATION_LOSS in line}, patience)


class Schedule(NamedTuple):
    """When to validate: every so many steps, and after the last one."""

    every: int
    last: int

    def is_due(self, step: int) -> bool:
        """Tell whether the adapter is validated after a step."""
        return step % self.every == 0 or step == self.last


class Validator:
    """Measures the loss of validation examples when it is due, and keeps the adapter of the lowest in `folder`."""

    def __init__(
        self, trainer: CompletionTrainer, rows: Sequence[Tokenized], schedule: Schedule, losses: Losses, folder: Path
    ) -> None:
        self.trainer = trainer
        self.rows = rows
        self.schedule = schedule
        self.losses = losses
        self.folder = folder

    def validate(self, step: int) -> float:
        """Return the loss after a step; InputError, in all processes, if it is not finite."""
        loss = self.loss()
        if not math.isfinite(loss):
            raise InputError(
                f"the validation loss must be finite, got {loss} after step {step}; train to another output with a "
                "lower learning rate"
            )
        self.losses = Losses({**self.losses.by_step, step: loss}, self.losses.patience)
        if self.losses.patience is not None and self.losses.best == step and self.trainer.args.process_index == 0:
            self._keep(step)
        return loss

    def loss(self) -> float:
        """Return the mean loss of a labelled token at the largest ranks, over the batches of all processes."""
        model = own_module(self.trainer)
        elastic = self.trainer.elastic
        active = elastic.active
        was_training = model.training
        elastic.activate(elastic.space.maximal())
        model.eval()
        try:
            with torch.no_grad(), self.trainer.compute_loss_context_manager():
                sums = self._sums()
        finally:
            model.train(was_training)
            reshard(model)
            if active is not None:
                elastic.activate(active)
        ordered = [figures for _, figures in sorted(sums)]
        return sum(loss for loss, _ in ordered) / sum(tokens for _, tokens in ordered)

    def _sums(self) -> list[tuple[int, tuple[float, int]]]:
        """Return the summed loss and the labelled tokens of each batch, with its number.

        Processes take batches in turn, as many each: a sharded model needs all of them in every forward.
        """
        batches = length_buckets([len(row.input_ids) for row in self.rows], self.trainer.args.train_batch_size)
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
        numbered: list[Any] = [(index, self.rows[index]) for index in indices]
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(numbered))
        losses, counts = self.trainer._example_losses(own_module(self.trainer), inputs, len(indices), ())
        return losses.double().sum().item(), int(counts.sum())

    def _keep(self, step: int) -> None:
        """Write the adapter; delete those that no whole checkpoint would need in a resumed training."""
        tensors = get_peft_model_state_dict(self.trainer.model)
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


def own_module(trainer: CompletionTrainer) -> nn.Module:
    """Return the model of a trainer without the wrappers that only a step needs."""
    assert trainer.model is not None
    return trainer.model


def best_file(folder: Path, step: int) -> Path:
    """Return the file of an adapter that had the lowest loss when it was validated."""
    return folder / f"best-{step}.safetensors"


def restore_best(model: PeftModel, folder: Path, losses: Losses) -> None:
    """Give a model the adapter with the lowest validation loss."""
    assert losses.best is not None
    set_peft_model_state_dict(model, load_file(best_file(folder, losses.best)))
