"""One JSON line per optimizer step, and the progress bar."""

import importlib.util
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.adapt.training.checkpoints import (
    last_whole_checkpoint,
    not_finite,
    random_states,
    set_random_states,
    step_of,
    what_is_kept,
)
from shears.adapt.training.processes import wait
from shears.adapt.training.trainer import CompletionTrainer, ExampleLoss
from shears.errors import InputError
from shears.progress import Meter
from shears.records.artifacts import TRAINING_TIMES


class StepLog(TrainerCallback):
    """Writes every step: loss, tokens, learning rate, ranks; or each example's loss and ranks, where these differ.

    The seconds it took go into a file of their own.
    """

    def __init__(self, path: Path, trainer: CompletionTrainer, meter: Meter) -> None:
        self.path, self.trainer, self.meter = path, trainer, meter
        self.learning_rate = 0.0
        self.before = 0.0  # when the step before ended, or training began
        self.figures: tuple[float, int, list[ExampleLoss]] = (0.0, 0, [])
        self.random_states: list[Tensor] = []  # after the step before: a checkpoint of it goes on from them

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note when the first step begins."""
        self.before = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate this step is made with."""
        self.learning_rate = kwargs["lr_scheduler"].get_last_lr()[0]
        self.trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the figures of the step; InputError, in all processes, where its loss or gradients are not finite.

        The update is then not made, and the state after the step before is saved, as far as it is finite itself. In
        fp16 gradients may overflow: torch's scaler leaves such a step out and scales less.
        """
        self.figures = self.trainer.step_figures()
        found = {"loss": self.figures[0]}
        if not args.fp16:
            found["norm of the gradients"] = self.trainer.gradient_norm
        name = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if name is None:
            return
        folder = Path(str(args.output_dir))
        saved = last_whole_checkpoint(folder)
        is_saved = saved is not None and step_of(saved) == state.global_step
        if state.global_step > 0 and not is_saved and not_finite(kwargs["model"]) is None:
            set_random_states(self.random_states)
            self.trainer.save_state()
        wait()  # for the mark of what the first process saved
        raise InputError(
            f"the {name} must be finite, got {found[name]} at step {state.global_step + 1}; train to another "
            f"output with a lower learning rate ({what_is_kept(folder)})"
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step that was just made."""
        loss, tokens, examples = self.figures
        active = self.trainer.elastic.active
        line: dict[str, Any] = {
            "step": state.global_step,
            "loss": loss,
            "tokens": tokens,
            "learning_rate": self.learning_rate,
        }
        if self.trainer.strategy.by_step:
            line["ranks"] = dict(active or {})
        else:
            line["examples"] = [example.as_data() for example in examples]
        if args.process_index == 0:
            _append(self.path, line)
            _append(self.path.with_name(TRAINING_TIMES), {"step": state.global_step, "seconds": self._seconds()})
        self.random_states = random_states()
        self.meter.advance(work=tokens, note=f"tokens/s, loss {loss:.3f}")

    def _seconds(self) -> float:
        """Return the time since the end of the step before, the making of the batch included."""
        before, self.before = self.before, time.monotonic()
        return round(self.before - before, 4)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


FOLDER = "TENSORBOARD_LOGGING_DIR"  # where Trainer's tensorboard callback writes


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError, naming what to install, where a tracker is not installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # wandb's own runs lie in ./wandb
            raise InputError(f"report_to {name} needs the package {name}, which is not installed; pip install {name}")


@contextmanager
def tracking(names: Sequence[str], output: Path) -> Iterator[None]:
    """Let tensorboard write beside the output, not into it, for a while; where the user named a folder, there.

    Event files hold times, and artifacts hold none.
    """
    if "tensorboard" not in names or FOLDER in os.environ:
        yield
        return
    os.environ[FOLDER] = str(output.with_name(f"{output.name}_tensorboard"))
    try:
        yield
    finally:
        os.environ.pop(FOLDER, None)
