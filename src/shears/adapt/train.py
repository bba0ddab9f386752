"""The verb `train`: fit a super-adapter on a frozen sparse model, then save it with its record."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shears.adapt.elastic import reorder
from shears.adapt.groups import resolved_groups
from shears.adapt.initial import without_start
from shears.adapt.prepare import (
    AdapterWeights,
    PreparedAdapter,
    Rows,
    build_space,
    prepare,
    read_training_rows,
    settings_for,
)
from shears.adapt.sampling import NLSCallback
from shears.adapt.space import SearchSpace
from shears.checkpoints.configuration import known_config
from shears.checkpoints.conversion import empty_model
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import rows_fingerprint
from shears.data.rows import refuse_same, source_fingerprint
from shears.models.blocks import weight_oi
from shears.models.devices import pick_device
from shears.models.grid_adapter import LEARNT, current_grids
from shears.models.ref import ModelRef, resolve
from shears.progress import is_first_process
from shears.quantization.training import write_grids
from shears.records import artifacts
from shears.records.folders import refuse_full_disk
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__
from shears.training.cached_teacher import open_teacher
from shears.training.distillation import Loss
from shears.training.loop import CHECKPOINT_BYTES, Training, check_warmup, fit
from shears.training.packed_attention import attend_by_example
from shears.training.processes import raise_in_all, shard_frozen, wait
from shears.training.stage import Stage, origin_of, run_stage
from shears.training.step_log import check_trackers
from shears.training.teacher import LiveTeacher, TeacherSource, find_teacher, refuse_other_vocabulary
from shears.training.trainer import LengthBucketSampler, collator_of
from shears.training.validation import Validation, read_losses
from shears.writing.stage import answers_source

logger = logging.getLogger(__name__)
SCHEDULER = "linear"  # the learning rate falls to 0 at the last step
TEXT_LOSS = Loss()


def train(model: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. `resume` continues an interrupted run of the same
    configuration from its last whole checkpoint. Under a launcher all processes call this, and the
    first one writes. InputError if an input is unusable, or if the loss, the gradients or the
    weights stop being finite.
    """
    settings = build(TrainConfig, "train", config)
    check_trackers(settings.report_to)
    if settings.validation_source is not None:
        refuse_same(settings.validation_source, settings.data, "train.validation must be other examples than data")
    base = resolve(model)
    base.refuse_package("train")
    settings = settings.model_copy(update={"groups": resolved_groups(settings.groups, base.folder)})
    teacher = find_teacher(settings.teacher) if settings.teacher else None
    if teacher:
        refuse_other_vocabulary(teacher, base)
    origin = origin_of(base, settings, teacher)
    if settings.validation_source and (validation := source_fingerprint(settings.validation_source)):
        origin["validation_sha256"] = validation
    stage = Stage("train", artifacts.SEARCH_SPACE, _removed(settings))
    recorded = {"base": base.recorded_name, **origin}

    def fit_and_save(work: Path) -> None:
        answer = partial(answers_source, settings.data, teacher.model if teacher else base, settings.seed)
        raise_in_all(lambda: answer(settings.columns) if is_first_process() else ("", settings.columns))
        data, columns = answer(settings.columns)  # the others find it there
        decided = settings_for(base, settings.model_copy(update={"data": data, "columns": dict(columns)}))
        by_base = {name: getattr(decided, name) for name in ("learning_rate", "alpha", "init")}
        rows = raise_in_all(lambda: read_training_rows(base, decided))
        prepared = _fitted(base, teacher, work, decided, rows)
        wait()  # for checkpoints that other processes still write
        if is_first_process():
            _save(prepared, work, settings, {**recorded, **rows.form.as_record(), **by_base})

    return run_stage(stage, settings, output, origin, fit_and_save, resume=resume)


def _removed(settings: TrainConfig) -> dict[str, Any]:
    """Return the values of removed options with which an interrupted run resumes."""
    return {
        "adapter": "lora",
        "compile": False,
        "curriculum": 0.0,
        "packing": True,
        "learn_scales": settings.quantize_aware != "none",
        "reorder": settings.reorders,
        "scheduler": SCHEDULER,
        "train_on": "completion",
        "weight_decay": 0.0,
    }


def _fitted(
    base: ModelRef, source: TeacherSource | None, work: Path, settings: TrainConfig, rows: Rows
) -> PreparedAdapter:
    """Return the model with its trained adapter."""
    logger.info("learning rate %g, alpha %g, init %s", settings.learning_rate, settings.alpha, settings.init)
    check_warmup(settings, settings.num_steps(len(rows.train)))
    raise_in_all(lambda: _check_room(base, work, settings))
    loss, packing = Loss(), True
    if source:
        seen = _examples_seen(settings, [len(row.input_ids) for row in rows.train])
        teacher = open_teacher(source, rows.pad_id, rows.train, settings, seen=seen)
        loss = Loss(teacher, settings.kl, settings.cross_entropy)
        packing = not isinstance(teacher, LiveTeacher) or teacher.keeps_apart
    prepared = raise_in_all(lambda: prepare(base, settings, rows))
    fit(training_of(prepared, settings, loss, packing=packing), work, settings)
    return prepared


def _check_room(base: ModelRef, work: Path, settings: TrainConfig) -> None:
    """Raise InputError, before a teacher computes, for groups that misfit and a disk without room for a checkpoint."""
    model = empty_model(base.folder, known_config(base.folder), torch.float32)
    space = build_space(model, settings.groups, settings.ranks)
    names = (name for group in space.modules.values() for name in group)
    sides = sum(sum(weight_oi(model.get_submodule(name)).shape) for name in names)
    refuse_full_disk(work, CHECKPOINT_BYTES * space.max_rank * sides)


def training_of(
    prepared: PreparedAdapter, settings: TrainConfig, loss: Loss = TEXT_LOSS, *, packing: bool = True
) -> Training:
    """Return what the loop trains: the adapter, at the ranks that the sampling gives each step."""
    model, elastic = prepared.model, prepared.elastic
    if settings.shard:
        shard_frozen(model, pick_device(settings.device))
    collator = collator_of(model, prepared.pad_id, packing=packing)
    if collator.capacity is not None:
        attend_by_example(model)
    else:
        logger.info("this model does not keep packed examples apart: batches are padded")
    count = len(prepared.rows)
    steps = settings.num_steps(count)
    validation = None
    if prepared.validation:
        every = settings.validation_every or settings.steps_per_epoch(count)
        at_largest = partial(elastic.at, elastic.space.maximal())
        validation = Validation(prepared.validation, every, steps, settings.early_stopping, at_largest)
    return Training(
        "train",
        AdapterWeights(model),
        prepared.rows,
        collator,
        loss,
        steps,
        SCHEDULER,
        callbacks=[NLSCallback(elastic, settings.seed, settings.sampling)],
        details=lambda: {"ranks": dict(elastic.active)},
        validation=validation,
        holds_frozen=not settings.shard,  # a shard's weights are of one number format
    )


def _examples_seen(settings: TrainConfig, lengths: Sequence[int]) -> set[int]:
    """Return the numbers of the examples that a training may read, of all that have these lengths.

    Which order it takes is known once the model is loaded: that of packed examples, which need not be
    of similar lengths, or that of padded ones. Both are covered.
    """
    count = settings.num_seen(len(lengths))
    if count >= len(lengths):
        return set(range(len(lengths)))
    assumed = ([1] * len(lengths), lengths)
    orders = (LengthBucketSampler(each, settings.batch_size, settings.seed) for each in assumed)
    return {number for order in orders for number in islice(order, count)}


def _save(prepared: PreparedAdapter, work: Path, settings: TrainConfig, origin: Mapping[str, Any]) -> None:
    """Write a plain PEFT adapter, and last the record that marks a whole super-adapter."""
    prepared.elastic.fold()
    if settings.reorders:
        reorder(prepared.model)
    config = prepared.model.peft_config["default"]
    config.base_model_name_or_path = origin["base"]
    prepared.model.save_pretrained(str(work))
    written = artifacts.read_json(work / ADAPTER_CONFIG)
    # PEFT writes target_modules in the order of a set, which differs between processes
    artifacts.write_json(work / ADAPTER_CONFIG, {**written, "target_modules": sorted(written["target_modules"])})
    space, alpha, parameters = _without_start(prepared, work, origin["alpha"])
    _save_grids(prepared, work)
    record = {
        "shears_version": __version__,
        "config": artifacts.as_data(settings),
        **origin,
        "data_fingerprint": rows_fingerprint(prepared.rows),
        "fingerprint": artifacts.weights_fingerprint(work),
        "alpha": alpha,
        "sparse_adapter": settings.masks,
        **({} if settings.quantize_aware == "none" else {"quantize_aware": settings.quantize_aware}),
        "max_rank": space.max_rank,
        "num_steps": json.loads((work / artifacts.TRAINING_LOG).read_text().splitlines()[-1])["step"],
        "num_parameters": parameters,
        **_validated(work / artifacts.TRAINING_LOG, settings),
        "groups": space.as_data(),
    }
    artifacts.sync_tree(work)
    artifacts.write_json(work / artifacts.SEARCH_SPACE, record)


def _save_grids(prepared: PreparedAdapter, work: Path) -> None:
    """Write the grids into a file of their own, so that the adapter's file is plain LoRA."""
    if not prepared.grids:
        return
    write_grids(work, current_grids(prepared.model, prepared.grids))
    tensors = load_file(work / ADAPTER_WEIGHTS)
    plain = {name: tensor for name, tensor in tensors.items() if LEARNT not in name}
    save_file(plain, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _validated(log: Path, settings: TrainConfig) -> dict[str, Any]:
    """Return step and validation loss of the saved adapter; nothing without a validation."""
    losses = read_losses(log)
    if losses.best is None:
        return {}
    step = losses.best if settings.early_stopping else max(losses.by_step)
    return {"validation": {"step": step, "loss": losses.by_step[step]}}


def _without_start(prepared: PreparedAdapter, work: Path, alpha: float) -> tuple[SearchSpace, float, dict[str, int]]:
    """Subtract from the saved adapter what PiSSA moved into it; return space, alpha and sizes.

    The adapter then has twice the rank at the same scaling, and fits the model as it is in its
    folder. Without such a start, the adapter stays as it is. Sizes are numbers of parameters.
    """
    elastic = prepared.elastic
    space = elastic.space
    parameters = {name: elastic.num_parameters(getattr(space, name)()) for name in ("maximal", "heuristic", "minimal")}
    if not prepared.start:
        return space, alpha, parameters
    tensors = without_start(load_file(work / ADAPTER_WEIGHTS), prepared.start)
    save_file(tensors, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = artifacts.read_json(work / ADAPTER_CONFIG)
    artifacts.write_json(work / ADAPTER_CONFIG, config | {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]})
    doubled = SearchSpace({group: (2 * ranks[0],) for group, ranks in space.ranks.items()}, space.modules)
    return doubled, 2 * alpha, {name: 2 * count for name, count in parameters.items()}
