"""Train a super-adapter on a frozen sparse model: PEFT's LoRA, transformers' Trainer, one callback of ours."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from shears.adapt.elastic import reorder
from shears.adapt.initial import without_start
from shears.adapt.prepare import Ready, prepare
from shears.adapt.space import SearchSpace
from shears.adapt.training.checkpoints import CHECKPOINTS
from shears.adapt.training.fit import fit
from shears.adapt.training.processes import join_processes, shared_folder, together, wait
from shears.adapt.training.step_log import check_trackers, tracking
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import rows_fingerprint
from shears.data.rows import source_fingerprint
from shears.models.load import pick_device, plain_folder
from shears.progress import is_first_process
from shears.records.artifacts import (
    SEARCH_SPACE,
    TRAINING_LOG,
    as_data,
    read_json,
    sync_tree,
    weights_fingerprint,
    write_json,
)
from shears.records.cards.card import write_card
from shears.records.folders import partial_folder
from shears.records.paths import expanded, recorded_name
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__

logger = logging.getLogger(__name__)


def train(model: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train a super-adapter on `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `TrainConfig`. `resume` continues an interrupted run of the same configuration from
    its last whole checkpoint. Under a launcher all processes call this, and the first one writes. InputError for what
    cannot be used, or when the loss stops being finite.
    """
    settings, output, started = build(TrainConfig, "train", config), expanded(output), time.monotonic()
    check_trackers(settings.report_to)
    origin = {
        "base_fingerprint": weights_fingerprint(plain_folder(model, "train")),
        "data_sha256": source_fingerprint(settings.data),
    }
    asked, known = _asked(settings, origin), {**TrainConfig.defaults(), **origin}
    if resume and not partial_folder(output).exists():
        logger.info("there is no interrupted training of %s to go on from: starting anew", output)
    join_processes(cpu=pick_device(settings.device).type == "cpu")
    with tracking(settings.report_to, output), shared_folder(output, asked, resume=resume, defaults=known) as work:
        is_saved = (work / SEARCH_SPACE).is_file()  # and only what is last was not done
        wait()  # before the first process goes on and takes the folder away
        if not is_saved:
            _fit_and_save(model, work, settings, {"base": recorded_name(model), **origin})
        if is_first_process():
            write_card(work)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # until all is saved, a resume goes on from them
    logger.info("trained %s in %.0f s", output, time.monotonic() - started)
    return output


def _asked(settings: TrainConfig, origin: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what a resume must agree in: what makes the weights, not what files are called or what is kept of steps.

    A model is known by its weights; so is local data by its content.
    """
    changeable = {"save_steps", "report_to"} | ({"data"} if origin["data_sha256"] is not None else set())
    return {**origin, **{name: value for name, value in as_data(settings).items() if name not in changeable}}


def _fit_and_save(model: str | Path, work: Path, settings: TrainConfig, origin: dict[str, str | None]) -> None:
    ready = together(lambda: prepare(model, settings))
    fit(ready, work, settings)
    wait()  # for checkpoints that others still write
    if is_first_process():
        if settings.reorder:
            reorder(ready.model)
        _save(ready, work, settings, origin)


def _save(ready: Ready, work: Path, settings: TrainConfig, origin: dict[str, str | None]) -> None:
    """Write the vanilla PEFT adapter, then the record that makes the folder a super-adapter: with it, all is there."""
    config = ready.model.peft_config["default"]
    config.base_model_name_or_path = origin["base"]
    ready.model.save_pretrained(str(work))
    _sort_targets(work / ADAPTER_CONFIG)
    space, alpha, parameters = _with_start(ready, work, settings.alpha)
    record = {
        "shears_version": __version__,
        "config": as_data(settings),
        **origin,
        "data_fingerprint": rows_fingerprint(ready.rows),
        "fingerprint": weights_fingerprint(work),
        "alpha": alpha,
        "sparse_adapter": settings.sparse_adapter,
        "max_rank": space.max_rank,
        "template": settings.template,
        "num_steps": json.loads((work / TRAINING_LOG).read_text().splitlines()[-1])["step"],
        "num_parameters": parameters,
        "groups": {
            name: {"ranks": list(ranks), "modules": list(space.modules[name])} for name, ranks in space.ranks.items()
        },
    }
    sync_tree(work)
    write_json(work / SEARCH_SPACE, record)


def _with_start(ready: Ready, work: Path, alpha: float) -> tuple[SearchSpace, float, dict[str, int]]:
    """Return the space, alpha and numbers of parameters of what was saved.

    What was moved out of the model at the start is taken off again, by an adapter of twice the rank at the same
    scaling: it belongs to the model as it is in its folder.
    """
    space, elastic = ready.elastic.space, ready.elastic
    parameters = {name: elastic.num_parameters(getattr(space, name)()) for name in ("maximal", "heuristic", "minimal")}
    if not ready.start:
        return space, alpha, parameters
    save_file(
        without_start(load_file(work / ADAPTER_WEIGHTS), ready.start), work / ADAPTER_WEIGHTS, metadata={"format": "pt"}
    )
    config = read_json(work / ADAPTER_CONFIG)
    write_json(work / ADAPTER_CONFIG, config | {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]})
    doubled = SearchSpace({group: (2 * ranks[0],) for group, ranks in space.ranks.items()}, space.modules)
    return doubled, 2 * alpha, {name: 2 * count for name, count in parameters.items()}


def _sort_targets(path: Path) -> None:
    """PEFT writes target_modules in the order of a set, another one in every process."""
    config = read_json(path)
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
