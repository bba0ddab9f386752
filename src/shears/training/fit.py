"""The training loop: transformers' Trainer with our loss, example order, checkpoints and log."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from shears.config.train_options import LoopConfig
from shears.data.examples import Tokenized
from shears.errors import InputError, first_line, reading
from shears.models.devices import pick_device, resolved_precision
from shears.progress import Meter, is_first_process, launched, meter
from shears.records.artifacts import TRAINING_LOG, TRAINING_TIMES, read_rows, sync_tree, write_json
from shears.records.folders import CHECKPOINTS, MARKER, refuse_full_disk
from shears.training import losses
from shears.training.batches import EpochOrder, length_buckets, pad_right
from shears.training.checkpoints import begin_from, last_whole_checkpoint, step_of
from shears.training.teacher import TeacherTargets

logger = logging.getLogger(__name__)
TRAINED = "trained.safetensors"  # in a checkpoint: the trained parameters
CHECKPOINT_BYTES = 12  # a trained number in a checkpoint: itself and AdamW's two moments, in fp32
SECONDS = 120.0  # between two checkpoints
MICRO_BATCH = 4  # examples in a forward unless set, or more that have FORWARD_TOKENS on average
FORWARD_TOKENS = 512  # with fewer, masking (and rounding) every weight once a forward costs more
VALIDATION_LOSS = "validation_loss"  # key in the training log


@dataclass(frozen=True)
class Training:
    """What a verb trains: parameters of `model` that require gradients, on `rows`, for `steps`."""

    verb: str
    model: nn.Module
    rows: Sequence[Tokenized]
    pad_id: int
    steps: int
    targets: TeacherTargets | None = None
    scheduler: str = "linear"
    callbacks: Sequence[TrainerCallback] = ()
    details: Callable[[], dict[str, Any]] = dict
    """Returns what the log says of a step beside its loss."""
    validation: Sequence[Tokenized] = ()
    """Examples to validate on after every epoch."""
    validating: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context in which the model computes what is validated, such as the largest ranks."""
    patience: int | None = None
    """Validations without a lower loss before the training stops early."""


def fit(training: Training, work: Path, settings: LoopConfig) -> None:
    """Train to the last step, from the last whole checkpoint in `work` if there is one."""
    trainer = StepTrainer(training, work, settings)
    refuse_full_disk(work, CHECKPOINT_BYTES * sum(each.numel() for _, each in trainer._trained()))
    checkpoint = begin_from(work)
    done = 0 if checkpoint is None else step_of(checkpoint)
    if checkpoint and (done == training.steps or is_over(validation_losses(work), training.patience)):
        trainer._load_from_checkpoint(str(checkpoint))  # Trainer would make one more step
    else:
        logger.info("training on %d examples, steps %d to %d", len(training.rows), done + 1, training.steps)
        with meter(training.verb, training.steps, "steps") as progress:
            progress.skip(done)
            trainer.add_callback(Steps(trainer, progress))
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except UnpicklingError as error:  # torch may read tensors and plain values only
                raise InputError(
                    f"{checkpoint} must hold tensors and plain values, got: {first_line(error)}; delete that folder"
                ) from error
    if training.patience:
        trainer._load_from_checkpoint(f"{work}/{CHECKPOINTS}/checkpoint-{best_step(validation_losses(work))}")


class StepTrainer(Trainer):
    """A Trainer whose loss is the mean over a step's labels, however forwards split them."""

    def __init__(self, training: Training, work: Path, settings: LoopConfig) -> None:
        self.training = training
        self.work = work
        self.settings = settings
        lengths = [len(row.input_ids) for row in training.rows]
        length = sum(lengths) / len(lengths)
        self.order = EpochOrder(lengths, settings.batch_size, settings.seed)
        super().__init__(
            model=training.model,
            args=training_arguments(settings, work / CHECKPOINTS, training.steps, training.scheduler, length),
            train_dataset=list(enumerate(training.rows)),
            data_collator=self._collated,
            callbacks=list(training.callbacks),
        )
        self.remove_callback(PrinterCallback)  # only the command line prints
        self.model_accepts_loss_kwargs = True  # so Trainer counts labels and does not divide again
        self.figures = [0.0, 0.0]  # loss and tokens of the step in this process
        self.gradient_norm: Any = 0.0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed loss of this forward over the number of labels in the whole step."""
        wanted = losses.labelled_positions(inputs["labels"])
        words = inputs["labels"].roll(-1, dims=1)[wanted]
        targets = self.training.targets
        taught = None if targets is None else targets.of(inputs["numbers"])
        with self.accelerator.autocast():  # prepared models switch it on in their own forward alone
            logits = losses.logits_at(model, inputs, wanted)
            summed = losses.text_losses(logits, words, taught, self.settings.kl, self.settings.cross_entropy).sum()
        assert num_items_in_batch is not None
        mean = summed / max(int(num_items_in_batch), 1)
        self.figures[0] += mean.item()
        self.figures[1] += sum(self.order.lengths[number] for number in inputs["numbers"].tolist())
        # DDP averages the processes' gradients, and the step's loss is their sum
        scaled: Tensor = mean * self.accelerator.num_processes
        return scaled

    @torch.no_grad()
    def validation_loss(self) -> float:
        total = 0.0
        labels = 0
        rows = self.training.validation
        self.training.model.eval()
        with self.training.validating(), self.accelerator.autocast():
            for bucket in length_buckets([len(row.input_ids) for row in rows], self.args.train_batch_size):
                batch = pad_right([rows[number] for number in bucket], self.training.pad_id)
                of_labels = losses.token_losses(self.training.model, self._prepare_inputs(batch))
                total += of_labels.double().sum().item()
                labels += len(of_labels)
        self.training.model.train()
        self.refuse_non_finite("validation loss", total)
        return total / labels

    def refuse_non_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            last = last_whole_checkpoint(self.work)
            kept = "no earlier step was saved" if last is None else f"{last} keeps the state after step {step_of(last)}"
            raise InputError(
                f"the {name} must be finite, got {value} at step {self.state.global_step + 1}; "
                f"train to another output with a lower learning rate ({kept})"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def _collated(self, numbered: Sequence[tuple[int, Tokenized]]) -> dict[str, Tensor]:
        numbers = torch.tensor([number for number, _ in numbered])  # in the training set
        return {**pad_right([row for _, row in numbered], self.training.pad_id), "numbers": numbers}

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.gradient_norm = super()._get_grad_norm(*args, **kwargs)  # of all processes, unclipped
        return self.gradient_norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: each.detach().contiguous() for name, each in self._trained()}, folder / TRAINED)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / TRAINED
        with reading(path):
            tensors = load_file(path)
            for name, parameter in self._trained():
                parameter.copy_(tensors[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for pair in self.training.model.named_parameters() if pair[1].requires_grad]


class Steps(TrainerCallback):
    def __init__(self, trainer: StepTrainer, progress: Meter) -> None:
        self.trainer = trainer
        self.progress = progress
        self.learning_rate = 0.0
        self.step_start = self.saved = time.monotonic()

    def on_epoch_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self.trainer.order.epoch = int(state.epoch or 0)

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        self.learning_rate = kwargs["lr_scheduler"].get_last_lr()[0]
        self.trainer.figures = [0.0, 0.0]

    def on_pre_optimizer_step(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """In all processes, refuse a loss and (but in fp16) gradients that are not finite."""
        if args.world_size > 1:
            own = torch.tensor(self.trainer.figures, dtype=torch.float64, device=args.device)
            self.trainer.figures = self.trainer.accelerator.reduce(own).tolist()
        self.trainer.refuse_non_finite("loss", self.trainer.figures[0])
        if not args.fp16:  # which scales them
            self.trainer.refuse_non_finite("norm of the gradients", float(self.trainer.gradient_norm))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *_: Any, **__: Any
    ) -> None:
        """Log the step and a validation that is due, which may end the training; save in time."""
        loss, tokens = self.trainer.figures
        step = state.global_step
        line = {"step": step, "loss": loss, "tokens": int(tokens), "learning_rate": self.learning_rate}
        training = self.trainer.training
        line |= training.details()
        seconds = round(time.monotonic() - self.step_start, 4)  # with the making of the batch
        every = -(-len(training.rows) // self.trainer.settings.batch_size)
        if training.validation and (step % every == 0 or step == state.max_steps):
            line[VALIDATION_LOSS] = self.trainer.validation_loss()
        if is_first_process():
            for name, content in ((TRAINING_LOG, line), (TRAINING_TIMES, {"step": step, "seconds": seconds})):
                with (self.trainer.work / name).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(content) + "\n")
        if training.patience and VALIDATION_LOSS in line:
            validated = validation_losses(self.trainer.work) | {step: line[VALIDATION_LOSS]}
            state.best_global_step = best_step(validated)  # Trainer keeps its checkpoint
            control.should_training_stop |= is_over(validated, training.patience)
            control.should_save |= control.should_training_stop or best_step(validated) == step
        if args.world_size == 1 and time.monotonic() - self.saved > SECONDS:
            control.should_save = True
        self.step_start = time.monotonic()
        self.progress.advance(work=int(tokens), note=f"tokens/s, loss {loss:.3f}")

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Mark a checkpoint as whole once all of it is on the disk."""
        self.saved = time.monotonic()
        self.trainer.accelerator.wait_for_everyone()
        if is_first_process():
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            sync_tree(folder)
            write_json(folder / MARKER, {"step": state.global_step})


def validation_losses(work: Path) -> dict[int, float]:
    log = work / TRAINING_LOG
    with reading(log):
        rows = read_rows(log) if log.is_file() else []
        return {int(row["step"]): float(row[VALIDATION_LOSS]) for row in rows if VALIDATION_LOSS in row}


def best_step(losses: Mapping[int, float]) -> int:
    """Return the first step of the lowest loss; 0 before the first validation."""
    return min(losses, key=lambda step: (losses[step], step), default=0)


def is_over(losses: Mapping[int, float], patience: int | None) -> bool:
    return patience is not None and sum(step > best_step(losses) for step in losses) >= patience


def training_arguments(
    settings: LoopConfig, folder: Path, steps: int, scheduler: str, length: float
) -> TrainingArguments:
    """Return Trainer's arguments: `folder` for checkpoints, examples of `length` tokens (mean)."""
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    processes = launched()[1]
    own = settings.batch_size // processes
    size = settings.micro_batch_size or math.gcd(own, MICRO_BATCH)
    while settings.micro_batch_size is None and own % (2 * size) == 0 and 2 * size * length <= FORWARD_TOKENS:
        size *= 2
    if settings.batch_size % processes or own % max(size, 1):
        raise InputError(
            "batch_size must be a multiple of micro_batch_size x processes, "
            f"got {settings.batch_size} for {size} x {processes}"
        )
    assert settings.learning_rate is not None, "the verb decides it"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=own // size,
        activation_checkpointing=settings.recompute,
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=min(settings.warmup_steps, steps - 1),
        save_steps=settings.save_steps,
        save_total_limit=2,  # the previous checkpoint must exist until the new one is whole
        logging_strategy="no",
        report_to="none",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # all processes have the same: ranks depend on seed and step
    )
    arguments.mixed_precision = {"fp32": "no"}.get(precision, precision)  # else a launcher decides
    if device.type == "cuda" and arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        device = torch.device("cuda", device.index or 0)  # Trainer would take all GPUs
        torch.cuda.set_device(device)
        arguments.__dict__["_setup_devices"] = device  # where `arguments.device` is cached
        arguments._n_gpu = 1
    return arguments
