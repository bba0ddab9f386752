"""The verb `train`: fit a super-adapter on a frozen sparse model, then save it with its record."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from shears.adapt.elastic import ElasticAdapter, NLSCallback, lora_layers
from shears.adapt.groups import add_lora, build_space, with_auto
from shears.adapt.super_adapter import write_super_adapter
from shears.checkpoints.tensor_files import num_weights
from shears.checkpoints.without_code import empty_model, known_config
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.config.serve_options import ANSWERED
from shears.data.examples import Tokenized, examples_of, rows_fingerprint, tokenize_all
from shears.data.forms import TrainedForm, form_of_rows
from shears.data.rows import read_rows, refuse_same, source_fingerprint
from shears.errors import InputError
from shears.models.devices import computing_dtype, narrow_linears, pick_device
from shears.models.grid_adapter import current_grids, grids_of, make_quantize_aware
from shears.models.load import load_model, num_embeddings, positions_in, refuse_unknown
from shears.models.recovery import start_from_recovery
from shears.models.ref import ModelRef, load_tokenizer, resolve
from shears.models.sparse_adapter import make_sparse
from shears.progress import is_first_process
from shears.quantization.grid import Grid
from shears.quantization.training import write_grids
from shears.records import artifacts
from shears.records.artifacts import read_rows as read_journal
from shears.records.paths import expanded
from shears.training import teacher as teaching
from shears.training.batches import padding
from shears.training.checkpoints import first_process_first, origin_of, training_folder
from shears.training.fit import Training, best_step, fit, validation_losses
from shears.training.teacher import TeacherTargets
from shears.writing.written import answers_source

logger = logging.getLogger(__name__)


def train(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. The same call continues an interrupted run. Under
    a launcher all processes call this, and the first one writes. InputError if an input is
    unusable, or if the loss, the gradients or the weights stop being finite.
    """
    settings = build(TrainConfig, "train", config)
    base = resolve(model)
    base.refuse_package("train")
    skeleton = empty_model(base.folder)
    settings = settings.model_copy(update={"groups": with_auto(settings.groups, skeleton)})
    build_space(skeleton, settings.groups, settings.ranks)  # raises before a teacher computes
    teacher = teaching.find_teacher(settings.teacher) if settings.teacher else None
    if teacher:
        teaching.refuse_other_vocabulary(teacher, base)
    origin = origin_of(base, settings, teacher.fingerprint if teacher else None)
    if validation := settings.validation_source:
        refuse_same(validation, settings.data, "train.validation must be other examples than data")
        origin |= {"validation_sha256": sha} if (sha := source_fingerprint(validation)) else {}
    with training_folder(expanded(output), settings, origin) as work:
        if not (work / artifacts.SEARCH_SPACE).is_file():  # else interrupted before the renaming
            decided = settings_for(base, settings)
            if settings.data.startswith(ANSWERED):
                decided = _with_answers(decided, teacher.model if teacher else base)
            chosen = (decided.learning_rate, decided.alpha, decided.init)
            logger.info("training with learning rate %g, alpha %g and init %s", *chosen)
            rows = read_training_rows(base, decided)
            targets = teaching.teacher_targets(teacher, rows.train, rows.pad_id, decided) if teacher else None
            elastic, grids = prepare(base, decided, rows)
            fit(training_of(elastic, rows, decided, targets), work, decided)
            if is_first_process():
                about = _record(work, settings, decided, rows)
                if grids:
                    write_grids(work, current_grids(elastic.model, grids))
                write_super_adapter(work, elastic, base, {**about, **origin})
    return expanded(output)


def _with_answers(settings: TrainConfig, author: ModelRef) -> TrainConfig:
    with first_process_first():
        data, columns = answers_source(settings.data, author, settings.seed, settings.columns, device=settings.device)
    return settings.model_copy(update={"data": data, "columns": dict(columns)})


def _record(work: Path, settings: TrainConfig, decided: TrainConfig, rows: "Rows") -> dict[str, Any]:
    about = {
        "config": artifacts.as_data(settings),
        "learning_rate": decided.learning_rate,
        "init": decided.init,
        **rows.form.as_record(),
        "data_fingerprint": rows_fingerprint(rows.train),
        "num_steps": read_journal(work / artifacts.TRAINING_LOG)[-1]["step"],
    }
    if losses := validation_losses(work):
        step = best_step(losses) if settings.early_stopping else max(losses)
        about["validation"] = {"step": step, "loss": losses[step]}
    if settings.quantize_aware != "none":
        about["quantize_aware"] = settings.quantize_aware
    return about


class Rows(NamedTuple):
    train: list[Tokenized]
    validation: list[Tokenized]
    pad_id: int
    form: TrainedForm


def settings_for(base: ModelRef, settings: TrainConfig) -> TrainConfig:
    linears = base.record.get("linears", {}).values()
    size = sum(math.prod(linear["shape"]) for linear in linears)
    sparsity = sum(linear["zeros"] for linear in linears) / max(size, 1)
    has_recovery = (base.folder / artifacts.RECOVERY_FOLDER / artifacts.RECOVERY).is_file()
    return settings.for_base(num_weights(base.folder), sparsity, has_recovery)


def read_training_rows(model: ModelRef, settings: TrainConfig) -> Rows:
    """Return the tokenized examples of `settings`; loads no model. InputError for unusable ones."""
    tokenizer = load_tokenizer(model)
    longest = min(settings.max_length, positions_in(known_config(model.folder)) or settings.max_length)
    sources = [settings.data, *filter(None, [settings.validation_source])]
    read = [read_rows(source, settings.columns) for source in sources]
    trained, *held_out = (
        tokenize_all(examples_of(rows, source, settings.template, tokenizer), tokenizer, longest)
        for source, rows in zip(sources, read, strict=True)
    )
    if settings.validation_share is not None:
        trained, *held_out = split_off(trained, settings.validation_share, settings.seed)
    return Rows(trained, list(chain(*held_out)), padding(tokenizer), form_of_rows(read[0], settings.template))


def split_off(rows: Sequence[Tokenized], share: float, seed: int) -> tuple[list[Tokenized], list[Tokenized]]:
    """Return the rows to train on and those of the share, in order; InputError for a single row."""
    if len(rows) < 2:
        raise InputError(f"a validation share needs two examples, got {len(rows)}; give a file")
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    drawn = set(random.Random(f"validation/{seed}").sample(range(len(rows)), count))
    trained = [row for index, row in enumerate(rows) if index not in drawn]
    return trained, [rows[index] for index in sorted(drawn)]


def prepare(model: ModelRef, settings: TrainConfig, rows: Rows) -> tuple[ElasticAdapter, Mapping[str, Grid]]:
    """Return the loaded model's adapter, and the first grids of quantize_aware, if any."""
    base = load_model(model, computing_dtype(settings.precision, pick_device(settings.device)), settings.device)
    refuse_unknown(max(max(row.input_ids) for row in chain(rows.train, rows.validation)), num_embeddings(base))
    space = build_space(base, settings.groups, settings.ranks)
    grids = {} if settings.quantize_aware == "none" else grids_of(base, model.folder, settings.quantize_aware)
    peft_model = add_lora(base, space, settings)
    if settings.init == "recovery":
        start_from_recovery(lora_layers(peft_model, "default"), model)
    elastic = ElasticAdapter(peft_model, space, nested=settings.sampling == "nested")
    if grids:
        make_quantize_aware(peft_model, grids, learn_scales=True)
    elif settings.masks:
        make_sparse(peft_model)
    else:
        narrow_linears(peft_model.get_base_model(), settings.precision)
    return elastic, grids


def training_of(
    elastic: ElasticAdapter, rows: Rows, settings: TrainConfig, targets: TeacherTargets | None = None
) -> Training:
    return Training(
        "train",
        elastic.model,
        rows.train,
        rows.pad_id,
        settings.num_steps(len(rows.train)),
        targets,
        callbacks=[NLSCallback(elastic, settings.seed)],
        details=lambda: {"ranks": dict(elastic.active)},
        validation=rows.validation,
        validating=partial(elastic.at, elastic.space.maximal()),
        patience=settings.early_stopping,
    )
