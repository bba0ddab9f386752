"""The verb `train`: fit a super-adapter on a frozen sparse model, then save it with its record."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from shears.adapt.elastic import ElasticAdapter, NLSCallback, lora_layers
from shears.adapt.groups import build_space, with_auto
from shears.adapt.prepare import Rows, prepare, read_training_rows, settings_for
from shears.adapt.save import write_super_adapter
from shears.checkpoints.configuration import known_config
from shears.checkpoints.conversion import empty_model
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import rows_fingerprint
from shears.data.rows import refuse_same, source_fingerprint
from shears.models.devices import pick_device
from shears.models.grid_adapter import current_grids
from shears.models.ref import ModelRef, resolve
from shears.progress import is_first_process
from shears.quantization.training import write_grids
from shears.records import artifacts
from shears.records.peft_files import ADAPTER_WEIGHTS
from shears.training.cached_teacher import open_teacher
from shears.training.distillation import Loss
from shears.training.loop import Training, check_warmup, fit
from shears.training.packed_attention import attend_by_example
from shears.training.processes import shard_frozen, wait
from shears.training.stage import Stage, origin_of, run_stage
from shears.training.step_log import check_trackers
from shears.training.teacher import LiveTeacher, TeacherSource, find_teacher, refuse_other_vocabulary
from shears.training.trainer import LengthBucketSampler, collator_of
from shears.training.validation import Validation, read_losses
from shears.writing.stage import answers_source

logger = logging.getLogger(__name__)
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
    skeleton = empty_model(base.folder, known_config(base.folder), torch.float32)
    settings = settings.model_copy(update={"groups": with_auto(settings.groups, skeleton)})
    build_space(skeleton, settings.groups, settings.ranks)  # groups that misfit are refused before a teacher computes
    teacher = find_teacher(settings.teacher) if settings.teacher else None
    if teacher:
        refuse_other_vocabulary(teacher, base)
    origin = origin_of(base, settings, teacher)
    if settings.validation_source and (validation := source_fingerprint(settings.validation_source)):
        origin["validation_sha256"] = validation

    def fit_and_save(work: Path) -> None:
        _fit_and_save(work, base, settings, teacher, origin)

    return run_stage(Stage("train", artifacts.SEARCH_SPACE, {}), settings, output, origin, fit_and_save, resume=resume)


def _fit_and_save(
    work: Path, base: ModelRef, settings: TrainConfig, source: TeacherSource | None, origin: Mapping[str, Any]
) -> None:
    """Read the rows, load the model, put an adapter on it, fit it, and write it with its record."""
    answers = partial(answers_source, settings.data, source.model if source else base, settings.seed, settings.columns)
    if is_first_process():
        answers()
    wait()
    data, columns = answers()  # the others find it there
    decided = settings_for(base, settings.model_copy(update={"data": data, "columns": dict(columns)}))
    logger.info("learning rate %g, alpha %g, init %s", decided.learning_rate, decided.alpha, decided.init)
    rows = read_training_rows(base, decided)
    check_warmup(decided, decided.num_steps(len(rows.train)))
    loss, packing = TEXT_LOSS, True
    if source:  # computes before the model is loaded beside it
        seen = _examples_seen(decided, [len(row.input_ids) for row in rows.train])
        teacher = open_teacher(source, rows.pad_id, rows.train, decided, seen=seen)
        loss = Loss(teacher, decided.kl, decided.cross_entropy)
        packing = not isinstance(teacher, LiveTeacher) or teacher.keeps_apart
    elastic, grids = prepare(base, decided, rows)
    fit(training_of(elastic, rows, decided, loss, packing=packing), work, decided)
    wait()  # for checkpoints that other processes still write
    if is_first_process():
        write_grids(work, current_grids(elastic.model, grids))
        about = {
            "config": artifacts.as_data(settings),
            "learning_rate": decided.learning_rate,
            "init": decided.init,
            **origin,
            **rows.form.as_record(),
            "data_fingerprint": rows_fingerprint(rows.train),
            **_course(work / artifacts.TRAINING_LOG, settings),
            **({"quantize_aware": settings.quantize_aware} if grids else {}),
        }
        write_super_adapter(work, elastic, base, about)


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


class AdapterWeights:
    """An adapter as the trained weights of a training (`trainer.TrainedWeights`)."""

    file = ADAPTER_WEIGHTS

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @property
    def narrow(self) -> int:
        """The largest rank."""
        return max(len(layer.lora_A["default"].weight) for _, layer in lora_layers(self.model, "default"))

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by PEFT's names."""
        return dict(get_peft_model_state_dict(self.model))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Give the adapter tensors that `tensors` returned."""
        set_peft_model_state_dict(self.model, tensors)


def training_of(
    elastic: ElasticAdapter, rows: Rows, settings: TrainConfig, loss: Loss = TEXT_LOSS, *, packing: bool = True
) -> Training:
    """Return what the loop trains: the adapter, at the ranks that the sampling gives each step."""
    model = elastic.model
    if settings.shard:
        shard_frozen(model, pick_device(settings.device))
    collator = collator_of(model, rows.pad_id, packing=packing)
    if collator.capacity is not None:
        attend_by_example(model)
    else:
        logger.info("this model does not keep packed examples apart: batches are padded")
    count = len(rows.train)
    steps = settings.num_steps(count)
    validation = None
    if rows.validation:
        every = settings.validation_every or settings.steps_per_epoch(count)
        at_largest = partial(elastic.at, elastic.space.maximal())
        validation = Validation(rows.validation, every, steps, settings.early_stopping, at_largest)
    return Training(
        "train",
        AdapterWeights(model),
        rows.train,
        collator,
        loss,
        steps,
        "linear",  # the learning rate falls to 0 at the last step
        callbacks=[NLSCallback(elastic, settings.seed)],
        details=lambda: {"ranks": dict(elastic.active)},
        validation=validation,
        holds_frozen=not settings.shard,  # a shard's weights are of one number format
    )


def _course(log: Path, settings: TrainConfig) -> Mapping[str, Any]:
    """Return the steps of a training, and step and validation loss of the saved adapter, if it was validated."""
    steps = {"num_steps": json.loads(log.read_text().splitlines()[-1])["step"]}
    losses = read_losses(log)
    if losses.best is None:
        return steps
    step = losses.best if settings.early_stopping else max(losses.by_step)
    return {**steps, "validation": {"step": step, "loss": losses.by_step[step]}}
