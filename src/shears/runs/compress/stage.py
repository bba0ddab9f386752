"""`shears compress`: plan once, then make and measure; the same call continues an interrupted one."""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shears.config import CompressConfig
from shears.config.embedded import EMBEDDED
from shears.config.resolve import build
from shears.data.example import OWN_NAMES
from shears.data.examples import check_rows
from shears.errors import InputError, reading
from shears.models.devices import set_threads
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import (
    COMPRESS,
    as_data,
    check_input,
    read_object,
    refuse_changes,
    write_json,
)
from shears.records.figures import packages_of
from shears.records.folders import named_folder, refuse_taken, run_lock
from shears.records.paths import expanded
from shears.runs.compress.candidates import Candidate, figures_of
from shears.runs.compress.effort import Effort
from shears.runs.compress.making import Road
from shears.runs.compress.planning import planned
from shears.runs.compress.texts import Texts, source_of, split_text
from shears.training.teacher import find_teacher, refuse_other_vocabulary

logger = logging.getLogger(__name__)


def compress(model: str | Path, output: str | Path, *, dry_run: bool = False, **config: Any) -> dict[str, Any]:
    """Make a package of `model` that meets a bound in `output`; return the record, COMPRESS there.

    The keywords are the fields of `CompressConfig`. Each candidate is a run in a folder of its own.
    An interrupted call continues with the plan that it made. `dry_run` returns the plan and writes
    nothing. InputError, before anything is written, for a bound that no candidate is predicted to
    meet (with the nearest one), for a model that meets it as it is, and for a text that cannot be
    used.
    """
    began = time.monotonic()
    settings = build(CompressConfig, "compress", config)
    set_threads(settings.threads)
    folder = named_folder(expanded(output)).resolve()
    ref = _checked(model, settings, folder)
    if not dry_run and (record := _begun(folder, ref, settings)) is not None:
        logger.info("%s: continuing with the plan of %s", folder, COMPRESS)
        with run_lock(folder):
            return _travelled(record, settings, folder, ref)
    source, columns = source_of(ref, settings, dry_run)
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:  # the model has not written it yet
            texts = Texts(Path(scratch) / "calibration.jsonl", Path(scratch) / "held_out.jsonl")
        else:
            other = settings.test if settings.calibration is None else None
            texts = split_text(source, Path(scratch), columns, other)
        try:
            record = planned(ref, settings, texts, folder, began)
        except InputError as error:  # the user knows no file of the temporary folder
            own = {str(texts.calibration): str(source), str(texts.held_out): f"the last tenth of {source}"}
            raise InputError(*(_renamed(message, own) for message in error.messages)) from error
        if dry_run:
            return record
        folder.mkdir(parents=True, exist_ok=True)
        for file in texts:
            shutil.copyfile(file, folder / file.name)
    with run_lock(folder):
        write_json(folder / COMPRESS, record)
        return _travelled(record, settings, folder, ref)


def _travelled(record: dict[str, Any], settings: CompressConfig, folder: Path, ref: ModelRef) -> dict[str, Any]:
    effort = _effort_of(record)
    return Road(record, effort.applied(settings, folder), folder, ref, _texts_in(folder, record)).travelled()


def _effort_of(record: Mapping[str, Any]) -> Effort:
    """Return the planned effort; that of a record of an earlier version is its configuration."""
    if "effort" in record:
        return Effort.from_data(record["effort"])
    config = record["config"]
    amounts = {name: config[name] for name in ("method", "num_samples", "sequence_length", "heal")}
    return Effort("earlier", steps=config["max_steps"], teaches=False, **amounts)


def _checked(model: str | Path, settings: CompressConfig, folder: Path) -> ModelRef:
    """Return the model; InputError for an unusable one, a missing text, a teacher or rows that do not suit."""
    if settings.calibration is None and settings.data is None and str(model) not in EMBEDDED:
        raise InputError(
            f"compress.data or compress.calibration must be given for {model} (a .gguf file takes minutes to "
            "convert): rows (--data), or text like that which the model will see, as FILE.txt, FILE.jsonl or a hub "
            "id (--calibration); or self, which the model writes"
        )
    columns = settings.columns if settings.calibration is None else OWN_NAMES
    for source in filter(None, (settings.data, settings.test)):
        check_rows(source, columns)
    ref = resolve(model, "bf16")  # a .gguf file; other models stay as they are
    ref.refuse_package("compress")
    if settings.teacher is not None:
        refuse_other_vocabulary(find_teacher(settings.teacher), ref)
    return ref


def _renamed(message: str, names: Mapping[str, str]) -> str:
    for before, after in names.items():
        message = message.replace(before, after)
    return message


def _begun(folder: Path, ref: ModelRef, settings: CompressConfig) -> dict[str, Any] | None:
    """Return the record of an earlier call, None for a new folder; InputError for another folder."""
    refuse_taken(folder, record=COMPRESS)
    if not (folder / COMPRESS).is_file():
        return None
    record = read_object(folder / COMPRESS)
    with reading(folder / COMPRESS):
        before = {**record["config"], "attempts": settings.attempts}  # more may be asked for
        refuse_changes(folder, before, as_data(settings))
        check_input(f"model of {folder}", record["base_fingerprint"], ref.fingerprint)
        _check_plan(record)
        _effort_of(record)
        texts = _texts_in(folder, record)
    for file in texts:
        if not file.is_file():
            raise InputError(f"{folder} must hold {file.name}, on which its plan was made; choose another output")
    return record


def _texts_in(folder: Path, record: Mapping[str, Any]) -> Texts:
    held_out = Path(record["held_out"]).name
    return Texts(folder / held_out.replace("held_out", "calibration"), folder / held_out)


def _check_plan(record: Mapping[str, Any]) -> None:
    """Raise one of RECORD_ERRORS for a record that `planned` and `Road` did not make."""
    promising = {each["name"] for each in record["candidates"] if each["meets"]}
    for each in record["candidates"]:
        if (candidate := Candidate.from_data(each)).name != each["name"] or not figures_of(candidate):
            raise ValueError(f"its candidate {each['name']!r:.100} has another name")
    if not promising or not isinstance(record["dense"], dict) or not record["parameters"] > 0:
        raise ValueError("it has no plan")
    for each in record["measured"]:
        if each["name"] not in promising or not each["bytes"] > 0:
            raise ValueError("it measured what was not planned")
    made = {each["name"] for each in packages_of(record)}
    if record["chosen"] is not None and record["chosen"] not in made:
        raise ValueError("it chose what was not measured")
