"""The training loop: transformers' Trainer with our loss, order of examples, ranks, checkpoints and log."""

import logging
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PrinterCallback, TrainingArguments
from transformers.training_args import ParallelMode

from shears.adapt.elastic import adapted_layers, factors_of
from shears.adapt.prepare import Prepared
from shears.adapt.sampling import NLSCallback, rank_sampling
from shears.config import TrainConfig
from shears.errors import InputError, first_line
from shears.models.devices import pick_device, resolved_precision
from shears.models.properties import num_positions, own_model
from shears.progress import is_first_process, meter
from shears.records.artifacts import TRAINING_LOG, TRAINING_TIMES
from shears.records.peft_files import ADAPTER_WEIGHTS
from shears.training import checkpoints
from shears.training.batches import PACK_TOKENS, ignores_padding, keeps_apart, padding
from shears.training.frozen import hold_as_computed
from shears.training.fused_lora import fuse_lora
from shears.training.heap import kept_heap
from shears.training.packed_attention import use_packed_attention
from shears.training.processes import num_processes, shard_frozen, wait
from shears.training.step_log import StepLog
from shears.training.teaching import Teaching
from shears.training.trainer import (
    Collator,
    CompletionTrainer,
    LengthBucketSampler,
    NumberedExamples,
    StepTrainer,
)
from shears.training.validation import Losses, Schedule, Validator, read_losses, restore_best

logger = logging.getLogger(__name__)
TRIAL = 4  # tokens
SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}  # their names in transformers
KEPT_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm", "_int_mm", "_scaled_mm")
WHOLE = (  # so begin the names of fused operators, and of PoLAR's reflections, which are slow
    "_scaled_dot_product", "shears::packed_attention", "shears::lora_linears", "linalg_householder_product"
)  # fmt: skip


def fit(prepared: Prepared, work: Path, settings: TrainConfig, teaching: Teaching | None = None) -> None:
    """Train until the last step, from the last whole checkpoint in `work` if there is one; `teaching` adds its loss.

    With early stopping, the model then has the adapter of the lowest validation loss, in the process that saves it.
    """
    if settings.shard:
        shard_frozen(prepared.model, pick_device(settings.device))
    lengths = [len(row.input_ids) for row in prepared.rows]
    steps = num_steps(settings, len(lengths))
    if steps <= settings.warmup_steps:
        logger.warning(
            "warmup_steps (%d) must be below the number of steps (%d); lower warmup_steps", settings.warmup_steps, steps
        )
    folder = work / checkpoints.CHECKPOINTS
    trainer = _trainer(prepared, lengths, training_arguments(settings, folder), settings)
    trainer.teaching = teaching
    trainer.remove_callback(PrinterCallback)  # only the command line prints
    checkpoint = last_checkpoint(work)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    losses = read_losses(work / TRAINING_LOG, settings.early_stopping)
    if checkpoint and (done == steps or losses.is_over):  # Trainer would make one more step before it stops
        set_peft_model_state_dict(prepared.model, load_file(checkpoint / ADAPTER_WEIGHTS))
    else:
        logger.info(
            "training %d examples, %d tokens, %d steps%s",
            len(lengths), sum(lengths), steps, f" from {done}" * (done > 0),
        )  # fmt: skip
        with meter("train", steps, "step") as progress:
            progress.skip(done)
            validator = _validator(prepared, trainer, losses, settings)
            trainer.add_callback(StepLog(work / TRAINING_LOG, trainer, progress, validator))
            with kept_heap():
                train_from(trainer, checkpoint)
    if settings.early_stopping and is_first_process():  # who saves the adapter
        restore_best(prepared.model, folder, read_losses(work / TRAINING_LOG))


def last_checkpoint(work: Path) -> Path | None:
    """Return the checkpoint to continue from, None to start anew; the logs then end at its step."""
    folder = work / checkpoints.CHECKPOINTS
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


def _validator(
    prepared: Prepared, trainer: CompletionTrainer, losses: Losses, settings: TrainConfig
) -> Validator | None:
    """Return what validates the training, None without validation examples."""
    if not prepared.validation:
        return None
    count = len(prepared.rows)
    schedule = Schedule(settings.validation_every or steps_per_epoch(settings, count), num_steps(settings, count))
    return Validator(trainer, prepared.validation, schedule, losses, Path(str(trainer.args.output_dir)))


def train_from(trainer: StepTrainer, checkpoint: Path | None) -> None:
    """Train to the last step; InputError for a checkpoint that holds other things than tensors and plain values."""
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError as error:  # transformers lets torch read tensors and plain values only
        raise InputError(
            f"{checkpoint} must hold tensors and plain values, got: {first_line(error)}; delete that folder"
        ) from error


def _trainer(
    prepared: Prepared, lengths: list[int], arguments: TrainingArguments, settings: TrainConfig
) -> CompletionTrainer:
    packed = settings.packing and keeps_apart(prepared.model)
    if packed and not settings.compile:
        attend_by_example(prepared.model)
    if settings.packing and not packed:
        logger.info("this model does not keep packed examples apart: batches are padded")
    if settings.recompute and not (settings.gradient_checkpointing or settings.compile):
        recompute_between_products(prepared.model)
    curriculum = round(settings.curriculum * num_steps(settings, len(lengths)))
    strategy = rank_sampling(settings.sampling, prepared.elastic.space, settings.seed, curriculum)
    collator = Collator(
        padding(prepared.tokenizer),
        PACK_TOKENS if packed else None,
        behind=not packed and not ignores_padding(prepared.model),
        limit=num_positions(prepared.model),
    )
    trainer = CompletionTrainer(
        lengths=[1] * len(lengths) if packed else lengths,  # packed examples need not be of similar length
        elastic=prepared.elastic,
        strategy=strategy,
        model=prepared.model,
        args=arguments,
        train_dataset=NumberedExamples(prepared.rows),
        data_collator=collator,
        callbacks=[NLSCallback(prepared.elastic, strategy=strategy, trainer_draws=True), checkpoints.MarkWhole()],
    )
    if not settings.shard:  # a shard's weights are of one number format
        precision = resolved_precision(settings.precision, pick_device(settings.device))
        hold_as_computed(prepared.model, precision)  # behind all trials, which multiply in the files' number format
        if not settings.compile:
            fuse_lora(prepared.model, precision)
    return trainer


def num_steps(settings: TrainConfig, num_examples: int) -> int:
    """Return the optimizer steps of a training, unless it is stopped early."""
    return settings.max_steps or -int(-settings.epochs * steps_per_epoch(settings, num_examples) // 1)


def steps_per_epoch(settings: TrainConfig, num_examples: int) -> int:
    """Return the optimizer steps of an epoch."""
    return -(-num_examples // settings.batch_size)


def num_seen(settings: TrainConfig, num_examples: int) -> int:
    """Return the examples of all steps of a training; the last step of an epoch may have fewer than a batch."""
    per_epoch = max(steps_per_epoch(settings, num_examples), 1)
    epochs, steps = divmod(num_steps(settings, num_examples), per_epoch)
    return epochs * num_examples + steps * settings.batch_size


def examples_seen(settings: TrainConfig, lengths: Sequence[int]) -> set[int]:
    """Return the numbers of the examples that a training may read, of all that have these lengths.

    Which order it takes is known once the model is loaded: with packing, that of examples of equal lengths, unless the
    model does not keep packed examples apart. Both are covered.
    """
    count = num_seen(settings, len(lengths))
    if count >= len(lengths):
        return set(range(len(lengths)))
    assumed = ([1] * len(lengths), lengths) if settings.packing else (lengths,)
    orders = (LengthBucketSampler(each, settings.batch_size, settings.seed) for each in assumed)
    return {number for order in orders for number in islice(order, count)}


def forward_size(settings: TrainConfig) -> int:
    """Return the examples of one forward of one process; InputError if a step cannot be split evenly."""
    processes = num_processes()
    size = settings.micro_batch_size or settings.batch_size // processes
    if size < 1 or settings.batch_size % (size * processes):
        raise InputError(
            f"batch_size must be a multiple of micro_batch_size x processes, got {settings.batch_size} for "
            f"{max(size, 1)} x {processes}; change one of them"
        )
    return size


def training_arguments(settings: TrainConfig, folder: Path) -> TrainingArguments:
    """Return Trainer's arguments; checkpoints go into `folder`. InputError if a step cannot be split evenly."""
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    size = forward_size(settings)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=settings.batch_size // (size * num_processes()),
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        torch_compile=settings.compile,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULERS[settings.scheduler],
        weight_decay=settings.weight_decay,
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
        ddp_broadcast_buffers=False,  # rank masks are each process's own
    )
    arguments.mixed_precision = {"fp32": "no"}.get(precision, precision)  # else a launcher's settings decide
    _use_one_gpu(device, arguments)
    return arguments


def _use_one_gpu(device: torch.device, arguments: TrainingArguments) -> None:
    """Restrict a process without a launcher to one GPU; transformers would use all GPUs, cuda:0 first."""
    if device.type != "cuda" or arguments.parallel_mode == ParallelMode.DISTRIBUTED:
        return
    if arguments.n_gpu > 1 and device.index is None:
        logger.info("training on one of %d GPUs; for all of them: accelerate launch -m shears train", arguments.n_gpu)
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    arguments.__dict__["_setup_devices"] = device  # where `arguments.device` is cached
    arguments._n_gpu = 1


def attend_by_example(model: PeftModel) -> bool:
    """Let a model that keeps packed examples apart compute attention by example, if it still keeps them apart then."""
    base = model.get_base_model()
    before = base.config._attn_implementation
    if not use_packed_attention(base):
        return False
    if keeps_apart(model):
        return True
    base.set_attn_implementation(before)
    return False


def recompute_between_products(model: nn.Module, narrow: int | None = None) -> bool:
    """Make every decoder block keep only the results that `keeps` selects; return whether a trial shows that it works.

    `narrow` is the largest rank of the trained products, by default that of PEFT's adapter.

    The backward pass recomputes the operations between two products (norms, rotations, activations, sums, casts, LoRA's
    narrow products): they are cheap, but keeping their results takes most of the memory. The recomputed values are the
    same bits, because a rank configuration is set before the forward and never inside it.
    The inverse is `own_model(model).activation_checkpointing_disable()`. The model's training mode, its gradients
    and torch's generators stay as they are.
    """
    base: Any = own_model(model)
    if base.supports_gradient_checkpointing:
        if narrow is None:
            narrow = max(len(factors_of(layer, "default")[0]) for _, layer in adapted_layers(model, "default"))
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, narrow))
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        if _works(model):
            return True
        base.activation_checkpointing_disable()
    logger.info("this model cannot recompute between its matrix products: training takes more memory")
    return False


def _works(model: nn.Module) -> bool:
    """Try a backward pass: some blocks modify kept results in place, which torch refuses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            ids = torch.arange(TRIAL, device=trained[0].device)[None]
            torch.autograd.grad(model(input_ids=ids, use_cache=False).logits.sum(), trained, allow_unused=True)
    except RuntimeError as error:
        logger.debug("recomputing between products: %s", error)
        return False
    finally:
        model.train(was_training)
    return True


def _policy(narrow: int, _context: Any, operator: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if keeps(operator, args, narrow) else CheckpointPolicy.PREFER_RECOMPUTE


def keeps(operator: torch._ops.OpOverload, args: tuple[Any, ...], narrow: int) -> bool:
    """Tell whether a result is kept: that of WHOLE, and products whose inner dimension is larger than `narrow`."""
    name = operator._schema.name.removeprefix("aten::")
    if name.startswith(WHOLE):
        return True
    if name not in KEPT_PRODUCTS:
        return False
    factors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.ndim > 1]
    return factors[0].shape[-1] > narrow
