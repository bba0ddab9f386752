"""What a training writes after every step: a JSON line, the progress bar, trackers."""

import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.errors import InputError
from shears.progress import Meter
from shears.records.artifacts import TRAINING_TIMES
from shears.training import checkpoints
from shears.training.processes import wait
from shears.training.trainer import StepTrainer
from shears.training.validation import VALIDATION_LOSS, Validator

logger = logging.getLogger(__name__)
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"  # the variable that Trainer's tensorboard callback reads
MLFLOW_STORE = "MLFLOW_TRACKING_URI"
STORES = {"tensorboard": (TENSORBOARD_FOLDER, "{}_tensorboard"), "mlflow": (MLFLOW_STORE, "sqlite:///{}_mlflow.db")}
"""The variables from which trackers learn where to write, and where that is beside an output."""


class StepLog(TrainerCallback):
    """Writes every step: loss, tokens, learning rate, and what `details` returns, such as ranks.

    The seconds of a step go into a file of their own.
    """

    validator: Validator | None = None

    def __init__(self, path: Path, trainer: StepTrainer, meter: Meter, details: Callable[[], dict[str, Any]]) -> None:
        self.path = path
        self.details = details
        self.trainer = trainer
        self.meter = meter
        self.note = ""  # the last validation loss, for the progress bar
        self.learning_rate = 0.0
        self.step_start = 0.0  # when the previous step ended, or training began
        self.figures = (0.0, 0)  # loss and tokens of the step
        self.random_states: list[Tensor] = []  # after the previous step; a checkpoint of that step must hold them

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Record when the first step begins."""
        self.step_start = time.monotonic()

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """Record the learning rate of this step."""
        self.learning_rate = kwargs["lr_scheduler"].get_last_lr()[0]
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Take the step's figures; InputError, in all processes, if loss or gradients are not finite.

        The update is then not made, and the state after the previous step is saved if it is finite
        itself. In fp16, gradients may overflow: torch's scaler skips such a step and lowers its
        scale.
        """
        self.figures = self.trainer.step_figures()
        values = {"loss": self.figures[0]}
        if not args.fp16:
            values["norm of the gradients"] = self.trainer.gradient_norm
        name = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if name is None:
            return
        folder = Path(str(args.output_dir))
        saved = checkpoints.last_whole_checkpoint(folder)
        is_saved = saved is not None and checkpoints.step_of(saved) == state.global_step
        if state.global_step > 0 and not is_saved and checkpoints.first_non_finite(kwargs["model"]) is None:
            checkpoints.set_random_states(self.random_states)
            self.trainer.save_state()
        wait()  # for the mark on what the first process saved
        raise InputError(
            f"the {name} must be finite, got {values[name]} at step {state.global_step + 1}; train to another "
            f"output with a lower learning rate ({checkpoints.describe_last_checkpoint(folder)})"
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *_: Any, **__: Any
    ) -> None:
        """Log the step, with its validation if one is due, which may end the training."""
        loss, tokens = self.figures
        line: dict[str, Any] = {
            "step": state.global_step,
            "loss": loss,
            "tokens": tokens,
            "learning_rate": self.learning_rate,
            **self.details(),
        }
        seconds = round(time.monotonic() - self.step_start, 4)  # with the making of the batch
        line |= self._validated(args, state.global_step, control)
        if args.process_index == 0:
            _append(self.path, line)
            _append(self.path.with_name(TRAINING_TIMES), {"step": state.global_step, "seconds": seconds})
        self.step_start = time.monotonic()
        self.random_states = checkpoints.random_states()
        self.meter.advance(work=tokens, note=f"tokens/s, loss {loss:.3f}{self.note}")

    def _validated(self, args: TrainingArguments, step: int, control: TrainerControl) -> dict[str, float]:
        """Return the validation loss if it is due; stop the trainer if it no longer falls."""
        if self.validator is None or not self.validator.validation.is_due(step):
            return {}
        loss = self.validator.validate(step)
        self.note = f", validation {loss:.3f}"
        if args.report_to:
            should_log = control.should_log
            self.trainer.log({"eval_loss": loss})
            control.should_log = should_log  # Trainer has not logged the step yet, and takes this for it
        if self.validator.losses.is_over:
            logger.info(
                "step %d: the validation loss has not fallen since step %s; stopped", step, self.validator.losses.best
            )
            control.should_training_stop = True
            control.should_save = True
        return {VALIDATION_LOSS: loss}


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError, with what to install, if a tracker is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # wandb's own runs lie in ./wandb, which is importable
            raise InputError(f"report_to {name} needs the package {name}, which is not installed; pip install {name}")


@contextmanager
def tracking(names: Sequence[str], output: Path) -> Iterator[None]:
    """Let tensorboard and mlflow write beside the output, unless the user's environment says where.

    Their files hold times, and artifacts must not.
    """
    wanted = dict(place for name, place in STORES.items() if name in names)
    own = {variable: place for variable, place in wanted.items() if variable not in os.environ}
    for variable, place in own.items():
        os.environ[variable] = place.format(output.absolute())
    try:
        yield
    finally:
        for variable in own:
            os.environ.pop(variable, None)
