"""The training loop: transformers' Trainer with our loss, order, checkpoints and log."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, ParallelMode

from shears.config.loop import LoopConfig
from shears.data.examples import Tokenized
from shears.errors import InputError, first_line
from shears.models.devices import pick_device, resolved_precision
from shears.progress import is_first_process, meter
from shears.records.artifacts import TRAINING_LOG, TRAINING_TIMES
from shears.records.folders import CHECKPOINTS, refuse_full_disk
from shears.training import checkpoints
from shears.training.distillation import Loss
from shears.training.fused_lora import fuse_lora
from shears.training.memory import hold_as_computed, kept_heap, recompute_between_products
from shears.training.processes import num_processes, wait
from shears.training.step_log import StepLog
from shears.training.stopping import SaveInTime
from shears.training.trainer import Collator, NumberedExamples, StepTrainer, TrainedWeights
from shears.training.validation import Validation, Validator, read_losses, restore_best

logger = logging.getLogger(__name__)
CHECKPOINT_BYTES = 12  # of a trained number in a checkpoint: itself and two moments of AdamW, in fp32


@dataclass(frozen=True)
class Training:
    """What a verb trains, on which examples, for how many steps; `LoopConfig` has the options.

    The progress bar shows `verb`. `callbacks` act on the steps, such as by drawing ranks. `details`
    returns what the log says of a step beside its loss. `holds_frozen` converts frozen linears to
    the arithmetic and fuses LoRA's products. `scheduler` is the course of the learning rate and
    `optimizer` the form of AdamW, by transformers' names.
    """

    verb: str
    weights: TrainedWeights
    rows: Sequence[Tokenized]
    collator: Collator
    loss: Loss
    steps: int
    scheduler: str
    optimizer: str = "adamw_torch_fused"
    callbacks: Sequence[TrainerCallback] = ()
    details: Callable[[], dict[str, Any]] = dict
    validation: Validation | None = None
    holds_frozen: bool = False


def fit(training: Training, work: Path, settings: LoopConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Train until the last step, from the last whole checkpoint in `work` if there is one.

    Checkpoints are also written as `SaveInTime` says, by a `clock` in seconds; Interrupted at a
    signal, once one is written.
    With early stopping, the model then has the weights of the lowest validation loss, in the
    process that saves it.
    """
    steps = training.steps
    trained = sum(each.numel() for each in training.weights.model.parameters() if each.requires_grad)
    refuse_full_disk(work, CHECKPOINT_BYTES * trained)
    trainer = _trainer(training, work / CHECKPOINTS, settings)
    checkpoint = last_checkpoint(work)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    patience = training.validation.patience if training.validation else None
    losses = read_losses(work / TRAINING_LOG, patience)
    if checkpoint and (done == steps or losses.is_over):  # Trainer would make one more step before it stops
        trainer.restore(checkpoint)
    else:
        count = len(training.rows)
        tokens = sum(len(row.input_ids) for row in training.rows)
        logger.info("training %d examples, %d tokens, %d steps%s", count, tokens, steps, f" from {done}" * (done > 0))
        with meter(training.verb, steps, "step") as progress:
            progress.skip(done)
            log = StepLog(work / TRAINING_LOG, trainer, progress, training.details)
            if training.validation:
                log.validator = Validator(trainer, training.validation, losses)
            in_time = SaveInTime(clock)
            trainer.add_callback(log)
            trainer.add_callback(in_time)
            with kept_heap(), in_time.heard():
                _train_from(trainer, checkpoint)
    if patience and is_first_process():  # who saves the weights
        restore_best(training.weights, work / CHECKPOINTS, read_losses(work / TRAINING_LOG))


def check_warmup(settings: LoopConfig, steps: int) -> None:
    """Raise InputError for a warmup that never ends; only warn of one that is at most the default.

    A few steps to try a command are fine, with the default warmup or less.
    """
    if steps > settings.warmup_steps:
        return
    message = f"warmup_steps ({settings.warmup_steps}) must be below the number of steps ({steps}); lower warmup_steps"
    if settings.warmup_steps > type(settings).model_fields["warmup_steps"].default:
        raise InputError(message)
    logger.warning("%s", message)


def _trainer(training: Training, folder: Path, settings: LoopConfig) -> StepTrainer:
    examples = NumberedExamples(training.rows)
    arguments = training_arguments(settings, folder, training.steps)
    arguments.lr_scheduler_type = SchedulerType(training.scheduler)
    arguments.optim = OptimizerNames(training.optimizer)
    model = training.weights.model
    if settings.recompute == "products":
        recompute_between_products(model, training.weights.narrow)
    padded = training.collator.capacity is None
    trainer = StepTrainer(
        lengths=[len(row.input_ids) if padded else 1 for row in training.rows],  # packed ones need not be similar
        weights=training.weights,
        loss=training.loss,
        args=arguments,
        train_dataset=examples,
        data_collator=training.collator,
        callbacks=[*training.callbacks, checkpoints.MarkWhole()],
    )
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    if training.holds_frozen:
        precision = resolved_precision(settings.precision, pick_device(settings.device))
        hold_as_computed(model, precision)  # behind all trials, which multiply in the files' number format
        fuse_lora(model, precision)
    return trainer


def last_checkpoint(work: Path) -> Path | None:
    """Return the checkpoint to continue from, None to start anew; the logs then end at its step."""
    folder = work / CHECKPOINTS
    if is_first_process():
        checkpoints.delete_torn(folder)
    wait()  # all processes must continue from the same checkpoint
    checkpoint = checkpoints.last_whole_checkpoint(folder)
    if checkpoint:
        checkpoints.check_processes(checkpoint)
    if is_first_process():
        for name in (TRAINING_LOG, TRAINING_TIMES):
            checkpoints.truncate_log(work / name, checkpoints.step_of(checkpoint) if checkpoint else 0)
    wait()  # all processes must read the same log
    return checkpoint


def _train_from(trainer: StepTrainer, checkpoint: Path | None) -> None:
    """Train to the last step; InputError for a checkpoint that would run code."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError as error:  # transformers lets torch read tensors and plain values only
        raise InputError(
            f"{checkpoint} must hold tensors and plain values, got: {first_line(error)}; delete that folder"
        ) from error


def _forward_size(settings: LoopConfig) -> int:
    """Return the examples of a process's forward; InputError if a step cannot be split evenly."""
    processes = num_processes()
    size = settings.micro_batch_size or settings.batch_size // processes
    if size < 1 or settings.batch_size % (size * processes):
        raise InputError(
            f"batch_size must be a multiple of micro_batch_size x processes, got {settings.batch_size} for "
            f"{max(size, 1)} x {processes}; change one of them"
        )
    return size


def training_arguments(settings: LoopConfig, folder: Path, steps: int, scheduler: str = "linear") -> TrainingArguments:
    """Return Trainer's arguments; `folder` gets the checkpoints. InputError for an uneven split."""
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    size = _forward_size(settings)
    assert settings.learning_rate is not None, "the verb decides it"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=settings.batch_size // (size * num_processes()),
        activation_checkpointing=settings.recompute == "blocks",
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        save_steps=settings.save_steps,
        save_total_limit=2,  # the previous checkpoint must exist until the new one is whole
        logging_strategy="steps" if settings.report_to else "no",
        logging_steps=1,
        report_to=list(settings.report_to) or "none",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # every process has the same: ranks are drawn from seed and step
    )
    arguments.mixed_precision = {"fp32": "no"}.get(precision, precision)  # else a launcher's settings decide
    _use_one_gpu(device, arguments)
    return arguments


def _use_one_gpu(device: torch.device, arguments: TrainingArguments) -> None:
    """Restrict a process without a launcher to one GPU, where transformers would use all."""
    if device.type != "cuda" or arguments.parallel_mode == ParallelMode.DISTRIBUTED:
        return
    if arguments.n_gpu > 1 and device.index is None:
        logger.info("training on one of %d GPUs; for all of them: accelerate launch -m shears train", arguments.n_gpu)
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    arguments.__dict__["_setup_devices"] = device  # where `arguments.device` is cached
    arguments._n_gpu = 1
