"""Zeros that move while a model is healed: at intervals, a share of every linear's zeros changes places.

"Rigging the Lottery" (RigL, arXiv 1911.11134): the kept weights that became smallest are dropped, and zeros at which
the loss has the largest gradient are trained from 0 on. The number of zeros of a linear stays.
"""

import math
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import TrainerCallback, TrainerState, TrainingArguments

from shears.config import HealConfig
from shears.healing.linears import kept_weights

LAST = 0.75  # part of the steps after which zeros stay, so that new weights are trained (as in RigL)


def share_at(step: int, settings: HealConfig) -> float:
    """Return the share of the zeros that change places after a step: half a cosine that falls to 0 at the last move."""
    last = LAST * settings.num_steps
    if not settings.move or step % settings.move_every or step > last:
        return 0.0
    return settings.move * (1 + math.cos(math.pi * step / last)) / 2


class MoveZeros(TrainerCallback):
    """Moves zeros after the steps for which `share_at` is above 0, by the gradients of those steps."""

    def __init__(self, settings: HealConfig) -> None:
        self.settings = settings

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Let the gradients of all weights be added up in a step before a move."""
        if share_at(state.global_step + 1, self.settings):
            for linear in kept_weights(kwargs["model"]).values():
                linear.gradient = torch.zeros_like(linear.weight, dtype=torch.float32)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Move zeros; the optimizer knows nothing of the new weights."""
        share = share_at(state.global_step + 1, self.settings)
        if not share:
            return
        for linear in kept_weights(kwargs["model"]).values():
            assert linear.gradient is not None
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(linear.gradient)
            new = linear.move(round(share * (linear.weight.numel() - len(linear.places))))
            linear.gradient = None
            for value in kwargs["optimizer"].state[linear.values].values():
                if isinstance(value, Tensor) and value.shape == linear.values.shape:
                    value[new] = 0.0
