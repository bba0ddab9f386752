"""The verb `train`: fit a super-adapter on a frozen sparse model, then save it with its record."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from shears.adapt.elastic import ElasticAdapter, NLSCallback
from shears.adapt.groups import build_space, with_auto
from shears.adapt.prepare import Rows, prepare, read_training_rows, settings_for
from shears.adapt.save import write_super_adapter
from shears.checkpoints.configuration import known_config
from shears.checkpoints.conversion import empty_model
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import IGNORED, Tokenized, rows_fingerprint
from shears.data.rows import refuse_same, source_fingerprint
from shears.models.grid_adapter import current_grids
from shears.models.ref import resolve
from shears.progress import is_first_process
from shears.quantization.training import write_grids
from shears.records import artifacts
from shears.records.journal import read_rows
from shears.records.paths import expanded
from shears.training.batches import EpochOrder
from shears.training.checkpoints import origin_of, training_folder
from shears.training.fit import Training, Validation, best_step, fit, validation_losses
from shears.training.processes import first_process_first
from shears.training.teacher import TeacherTargets, find_teacher, refuse_other_vocabulary, teacher_targets
from shears.writing.written import answers_source

logger = logging.getLogger(__name__)


def train(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. The same call continues an interrupted run from
    its last whole checkpoint. Under a launcher all processes call this, and the first one writes.
    InputError if an input is unusable, or if the loss, the gradients or the weights stop being
    finite.
    """
    settings = build(TrainConfig, "train", config)
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
    with training_folder(expanded(output), settings, origin) as work:
        if not (work / artifacts.SEARCH_SPACE).is_file():  # it is there after an interruption before renaming
            data, columns = first_process_first(
                lambda: answers_source(
                    settings.data, teacher.model if teacher else base, settings.seed, settings.columns
                )
            )
            decided = settings_for(base, settings.model_copy(update={"data": data, "columns": dict(columns)}))
            logger.info("learning rate %g, alpha %g, init %s", decided.learning_rate, decided.alpha, decided.init)
            rows = read_training_rows(base, decided)
            seen = _rows_seen(rows.train, decided)
            targets = teacher_targets(teacher, seen, rows.pad_id, decided) if teacher else None
            elastic, grids = prepare(base, decided, rows)
            fit(training_of(elastic, rows, decided, targets), work, decided)
            if is_first_process():
                write_grids(work, current_grids(elastic.model, grids))
                about = {
                    "config": artifacts.as_data(settings),
                    "learning_rate": decided.learning_rate,
                    "init": decided.init,
                    **origin,
                    **rows.form.as_record(),
                    "data_fingerprint": rows_fingerprint(rows.train),
                    **_course(work, settings),
                    **({"quantize_aware": settings.quantize_aware} if grids else {}),
                }
                write_super_adapter(work, elastic, base, about)
    return expanded(output)


def _rows_seen(rows: Sequence[Tokenized], settings: TrainConfig) -> Sequence[Tokenized]:
    """Return the rows, without labels where a training ends before it reads them: no teacher computes those."""
    count = settings.num_seen(len(rows))
    if count >= len(rows):
        return rows
    order = EpochOrder([len(row.input_ids) for row in rows], settings.batch_size, settings.seed)
    seen = set(islice(order, count))
    ignored = (Tokenized(row.input_ids, [IGNORED] * len(row.labels)) for row in rows)
    return [row if number in seen else other for number, (row, other) in enumerate(zip(rows, ignored, strict=True))]


def training_of(
    elastic: ElasticAdapter, rows: Rows, settings: TrainConfig, targets: TeacherTargets | None = None
) -> Training:
    """Return what the loop trains: the adapter, at the ranks that the sampling gives each step."""
    count = len(rows.train)
    validation = None
    if rows.validation:
        every = settings.validation_every or settings.steps_per_epoch(count)
        at_largest = partial(elastic.at, elastic.space.maximal())
        validation = Validation(rows.validation, every, settings.early_stopping, at_largest)
    return Training(
        "train",
        elastic.model,
        rows.train,
        rows.pad_id,
        settings.num_steps(count),
        targets,
        callbacks=[NLSCallback(elastic, settings.seed)],
        details=lambda: {"ranks": dict(elastic.active)},
        validation=validation,
    )


def _course(work: Path, settings: TrainConfig) -> Mapping[str, Any]:
    """Return the steps of a training, and step and validation loss of the saved adapter, if it was validated."""
    steps = {"num_steps": read_rows(work / artifacts.TRAINING_LOG)[-1]["step"]}
    losses = validation_losses(work)
    if not losses:
        return steps
    step = best_step(losses) if settings.early_stopping else max(losses)
    return {**steps, "validation": {"step": step, "loss": losses[step]}}
