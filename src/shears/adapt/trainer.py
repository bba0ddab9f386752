"""The Trainer of the frozen sparse model: completion-only logits, batches of similar length, one log line a step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.order import LengthBucketSampler
from shears.errors import InputError
from shears.losses import IGNORED, completion_losses
from shears.progress import Meter


class CompletionTrainer(Trainer):
    """A Trainer whose loss is the mean over the optimizer step's completion tokens, however they are split."""

    def __init__(self, *, lengths: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lengths = lengths
        self.model_accepts_loss_kwargs = True  # makes Trainer count the step's labels and not divide again
        self.step_loss, self.step_tokens = 0.0, 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthBucketSampler(self.lengths, size, self.args.seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed loss of this forward over the number of labelled tokens in the whole step."""
        labels = int((inputs["labels"] != IGNORED).sum())
        total = num_items_in_batch if num_items_in_batch is not None else labels
        loss = completion_losses(model, inputs).sum() / max(int(total), 1)
        self.step_loss += loss.item()
        self.step_tokens += int(inputs["attention_mask"].sum())
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise InputError(f"the loss must be finite, got {loss.item()} at step {step}; lower the learning rate")
        return loss


class StepLog(TrainerCallback):
    """Writes one JSON line per optimizer step and moves the progress bar."""

    def __init__(self, path: Path, trainer: CompletionTrainer, elastic: ElasticAdapter, meter: Meter) -> None:
        self.path, self.trainer, self.elastic, self.meter = path, trainer, elastic, meter
        self.learning_rate, self.tokens = 0.0, 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate this step is made with."""
        scheduler = kwargs["lr_scheduler"]
        self.learning_rate = scheduler.get_last_lr()[0]
        self.trainer.step_loss, self.trainer.step_tokens = 0.0, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step that was just made."""
        self.tokens += self.trainer.step_tokens
        line = {
            "step": state.global_step,
            "loss": self.trainer.step_loss,
            "tokens": self.trainer.step_tokens,
            "learning_rate": self.learning_rate,
            "ranks": dict(self.elastic.active),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.meter.advance(note=f"loss {self.trainer.step_loss:.3f}, {self.trainer.step_tokens} tokens")
