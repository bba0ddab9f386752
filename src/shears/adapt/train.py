"""The verb `train`: fit a super-adapter on a frozen sparse model (training), then save it with its record."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from shears import __version__
from shears.adapt.elastic import reorder
from shears.adapt.groups import resolved_groups
from shears.adapt.initial import without_start
from shears.adapt.polar import fold_polar
from shears.adapt.prepare import Prepared, prepare, read_training_rows
from shears.adapt.space import SearchSpace
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import rows_fingerprint
from shears.data.rows import source_fingerprint
from shears.models.devices import pick_device
from shears.models.grid_adapter import LEARNT, current_grids
from shears.models.ref import ModelRef, resolve
from shears.progress import is_first_process
from shears.quantization.training import write_grids
from shears.records import artifacts
from shears.records.card import write_card
from shears.records.folders import partial_folder
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.training.cached_teacher import cached_teacher
from shears.training.checkpoints import CHECKPOINTS
from shears.training.loop import examples_seen, fit
from shears.training.processes import join_processes, raise_in_all, shared_folder, wait
from shears.training.step_log import check_trackers, tracking
from shears.training.teacher import TeacherSource, find_teacher, refuse_other_vocabulary
from shears.training.teaching import Teaching
from shears.training.validation import read_losses

logger = logging.getLogger(__name__)


def train(model: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. `resume` continues an interrupted run of the same configuration from
    its last whole checkpoint. Under a launcher all processes call this, and the first one writes. InputError if an
    input is unusable, or if the loss, the gradients or the weights stop being finite.
    """
    started = time.monotonic()
    settings = build(TrainConfig, "train", config)
    output = expanded(output)
    check_trackers(settings.report_to)
    base = resolve(model)
    base.refuse_package("train")
    settings = settings.model_copy(update={"groups": resolved_groups(settings.groups, base.folder)})
    teacher = find_teacher(settings.teacher) if settings.teacher else None
    if teacher:
        refuse_other_vocabulary(teacher, base)
    origin = _origin(base, settings, teacher)
    fixed = _fixed(settings, origin)
    if resume and not partial_folder(output).exists():
        logger.info("no interrupted training of %s to resume: starting anew", output)
    join_processes(cpu=pick_device(settings.device).type == "cpu")
    with tracking(settings.report_to, output), shared_folder(output, fixed, resume=resume, kind=TrainConfig) as work:
        is_saved = (work / artifacts.SEARCH_SPACE).is_file()  # interrupted between saving and renaming the folder
        wait()  # before the first process continues and renames the folder
        if not is_saved:
            _fit_and_save(base, work, settings, {"base": base.recorded_name, **origin}, teacher)
        if is_first_process():
            write_card(work)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needs them until all is saved
    logger.info("trained %s in %.0f s", output, time.monotonic() - started)
    return output


def _origin(base: ModelRef, settings: TrainConfig, teacher: TeacherSource | None) -> dict[str, str | None]:
    """Return the fingerprints of the base, of the data, of the teacher, and of local validation examples."""
    validation = source_fingerprint(settings.validation_source) if settings.validation_source else None
    return {
        "base_fingerprint": base.fingerprint,
        "data_sha256": source_fingerprint(settings.data),
        **({"validation_sha256": validation} if validation else {}),
        **({"teacher_fingerprint": teacher.fingerprint} if teacher else {}),
    }


def _fixed(settings: TrainConfig, origin: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the configuration that a resume must not change: all that decides the weights, without file names.

    A model is identified by its weights, local data by its content.
    """
    hashed = {name for name in ("data", "validation") if origin.get(f"{name}_sha256") is not None}
    hashed |= {"teacher"} if "teacher_fingerprint" in origin else set()
    changeable = {"save_steps", "report_to"} | hashed
    return {**origin, **{name: value for name, value in artifacts.as_data(settings).items() if name not in changeable}}


def _fit_and_save(
    model: ModelRef,
    work: Path,
    settings: TrainConfig,
    origin: dict[str, str | None],
    teacher: TeacherSource | None,
) -> None:
    rows = raise_in_all(lambda: read_training_rows(model, settings))
    teaching = None
    if teacher:
        seen = examples_seen(settings, [len(row.input_ids) for row in rows.train])
        targets = cached_teacher(teacher, model, rows.train, settings, packing=settings.packing, seen=seen)
        teaching = Teaching(targets, settings.teacher_weight)
    prepared = raise_in_all(lambda: prepare(model, settings, rows))
    fit(prepared, work, settings, teaching)
    wait()  # for checkpoints that other processes still write
    if is_first_process():
        fold_polar(prepared.model)
        prepared.elastic.fold()
        if settings.reorder:
            reorder(prepared.model)
        _save(prepared, work, settings, origin)


def _save(prepared: Prepared, work: Path, settings: TrainConfig, origin: dict[str, str | None]) -> None:
    """Write a plain PEFT adapter; last the record that makes the folder a super-adapter, so that it marks it whole."""
    config = prepared.model.peft_config["default"]
    config.base_model_name_or_path = origin["base"]
    prepared.model.save_pretrained(str(work))
    written = artifacts.read_json(work / ADAPTER_CONFIG)
    # PEFT writes target_modules in the order of a set, which differs between processes
    artifacts.write_json(work / ADAPTER_CONFIG, {**written, "target_modules": sorted(written["target_modules"])})
    space, alpha, parameters = _without_start(prepared, work, settings.alpha)
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
        "template": settings.template,
        "num_steps": json.loads((work / artifacts.TRAINING_LOG).read_text().splitlines()[-1])["step"],
        "num_parameters": parameters,
        **_validated(work / artifacts.TRAINING_LOG, settings),
        "groups": space.as_data(),
    }
    artifacts.sync_tree(work)
    artifacts.write_json(work / artifacts.SEARCH_SPACE, record)


def _save_grids(prepared: Prepared, work: Path) -> None:
    """Write the grids of quantize_aware into a file of their own, so that the adapter's file is plain LoRA."""
    if not prepared.grids:
        return
    write_grids(work, current_grids(prepared.model, prepared.grids))
    tensors = load_file(work / ADAPTER_WEIGHTS)
    plain = {name: tensor for name, tensor in tensors.items() if LEARNT not in name}
    save_file(plain, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _validated(log: Path, settings: TrainConfig) -> dict[str, Any]:
    """Return the step and the validation loss of the saved adapter; nothing without a validation."""
    losses = read_losses(log)
    if losses.best is None:
        return {}
    step = losses.best if settings.early_stopping else max(losses.by_step)
    return {"validation": {"step": step, "loss": losses.by_step[step]}}


def _without_start(prepared: Prepared, work: Path, alpha: float) -> tuple[SearchSpace, float, dict[str, int]]:
    """Subtract from the saved adapter what init pissa moved out of the model; return its space, alpha and sizes.

    The adapter then has twice the rank at the same scaling, and fits the model as it is in its folder. Without such a
    start, the adapter stays as it is. Sizes are numbers of parameters.
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
