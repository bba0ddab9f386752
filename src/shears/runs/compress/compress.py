"""`shears compress`: plan once, then make and measure; the same call continues an interrupted one."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shears.adapt.train import train
from shears.config import CompressConfig, Recipe
from shears.config.embedded import EMBEDDED
from shears.config.resolve import build, load_recipe
from shears.data.examples import check_rows
from shears.data.rows import OWN_NAMES
from shears.errors import InputError, memory_of, reading
from shears.models.devices import set_threads
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import COMPRESS, RECIPE, as_data, check_input, read_object, refuse_changes, write_json
from shears.records.figures import packages_of
from shears.records.folders import named_folder, refuse_taken, run_lock
from shears.records.paths import expanded
from shears.records.timing import timed
from shears.runs.baselines import HEALED_FOLDER
from shears.runs.compress.candidates import Candidate, best, figures_of, following
from shears.runs.compress.effort import TEACHER, Effort
from shears.runs.compress.exam import Exam, Texts, answers_of, asked_rows, num_windows, source_of, split_text
from shears.runs.compress.planning import Inputs, planned
from shears.runs.compress.recipes import recipe_of, teacher_training
from shears.runs.pipeline import run
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
    ref = _checked(model, settings)
    refuse_taken(folder, record=COMPRESS)
    record = _begun(folder, ref, settings) if (folder / COMPRESS).is_file() and not dry_run else None
    if record is None:
        record = _planned(ref, settings, folder, began, dry_run=dry_run)
        if dry_run:
            return record
    with run_lock(folder):
        write_json(folder / COMPRESS, record)
        effort = Effort(**record["effort"])
        made = effort.applied(settings, folder)
        texts = _texts_in(folder, record)
        rows = asked_rows(settings, texts.held_out)
        exam = Exam(
            texts.held_out, made.sequence_length, num_windows(rows is not None, made.num_samples), record["template"],
            rows, record["task"], record["longest_answer"],
        )  # fmt: skip
        _measure_dense(record, folder, ref, exam)
        _teach(record, folder, ref, made, exam)
        promising = [Candidate.from_data(each) for each in record["candidates"] if each["meets"]]
        while len(record["measured"]) < effort.attempts:
            candidate = following(promising, record["measured"], made.bound, record["parameters"])
            if candidate is None:
                break
            record["measured"].append(_made(candidate, record, folder, ref, made, exam))
            _choose(record, folder, made)
        if effort.rival and record["measured"]:
            _make_rival(promising, record, folder, ref, made, exam)
    return record


def _checked(model: str | Path, settings: CompressConfig) -> ModelRef:
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


def _begun(folder: Path, ref: ModelRef, settings: CompressConfig) -> dict[str, Any]:
    """Return the record of an earlier call; InputError if it had another configuration or is damaged."""
    record = read_object(folder / COMPRESS)
    with reading(folder / COMPRESS):
        before = {**record["config"], "attempts": settings.attempts}  # more may be asked for
        refuse_changes(folder, before, as_data(settings))
        check_input(f"model of {folder}", record["base_fingerprint"], ref.fingerprint)
        texts = _texts_in(folder, record)
        names = {Candidate.from_data(each).name for each in record["candidates"] if each["meets"]}
        if not names or not all(each["name"] in names and each["bytes"] > 0 for each in record["measured"]):
            raise ValueError("it measured what was not planned")
        if record["chosen"] not in {None, *(each["name"] for each in packages_of(record))}:
            raise ValueError("it chose what was not measured")
        Effort(**record["effort"])
        if not record["parameters"] > 0 or not isinstance(record["dense"], dict):
            raise ValueError("it has no plan")
    for file in texts:
        if not file.is_file():
            raise InputError(f"{folder} must hold {file.name}, on which its plan was made; choose another output")
    logger.info("%s: continuing with the plan of %s", folder, COMPRESS)
    record["effort"]["attempts"] = max(record["effort"]["attempts"], settings.attempts)
    return record


def _texts_in(folder: Path, record: Mapping[str, Any]) -> Texts:
    held_out = Path(record["held_out"]).name
    return Texts(folder / held_out.replace("held_out", "calibration"), folder / held_out)


def _planned(ref: ModelRef, settings: CompressConfig, folder: Path, began: float, *, dry_run: bool) -> dict[str, Any]:
    """Return the record of a new call; writes its texts to the folder, unless it is a dry run."""
    source, columns = source_of(ref, settings, dry_run)
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:  # the model has not written it yet
            texts = Texts(Path(scratch) / "calibration.jsonl", Path(scratch) / "held_out.jsonl")
        else:
            texts = split_text(source, Path(scratch), columns, settings.test if settings.calibration is None else None)
        try:
            record = planned(Inputs(ref, settings, texts, folder), began)
        except InputError as error:  # the user knows no file of the temporary folder
            own = {str(texts.calibration): str(source), str(texts.held_out): f"the last tenth of {source}"}
            messages = list(error.messages)
            for scratch_name, name in own.items():
                messages = [message.replace(scratch_name, name) for message in messages]
            raise InputError(*messages) from error
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            for file in texts:
                shutil.copyfile(file, folder / file.name)
    return record


def _measure_dense(record: dict[str, Any], folder: Path, ref: ModelRef, exam: Exam) -> None:
    """Measure loss and answers of the model as it came."""
    dense = record["dense"]
    if dense.get("held_out_loss") is not None:
        return
    with timed(folder, "dense"):
        dense["held_out_loss"] = exam.loss(ref)
        limit = record["asked_as_it_came"]
        dense["answers"] = None if exam.rows is None else answers_of(exam.answered(ref, limit=limit, untrained=True))
    write_json(folder / COMPRESS, record)


def _teach(record: dict[str, Any], folder: Path, ref: ModelRef, settings: CompressConfig, exam: Exam) -> None:
    """Train the dense model on the rows, if planned; measure it where packages are compared with it."""
    name = settings.teacher
    if name is None or record.get(TEACHER) is not None:
        return
    output = folder / TEACHER
    answers = None
    with timed(folder, TEACHER):
        if name == str(output) and not output.is_dir():
            config = teacher_training(settings, str(_texts_in(folder, record).calibration))
            with memory_of("train"):
                train(ref.folder, output, **as_data(config))
        if settings.target is None:
            source = find_teacher(name)
            answers = answers_of(exam.answered(source.model, source.adapter))
    record[TEACHER] = {"name": name, "answers": answers}
    write_json(folder / COMPRESS, record)


def _made(
    candidate: Candidate, record: Mapping[str, Any], folder: Path, ref: ModelRef, settings: CompressConfig, exam: Exam
) -> dict[str, Any]:
    """Make the package of a candidate and return its figures."""
    logger.info("%s: %s predicted", candidate.name, figures_of(candidate))
    output = folder / candidate.name
    recipe = recipe_of(candidate, settings, ref, str(_texts_in(folder, record).calibration))
    recipe = recipe.model_copy(update={"output": str(output)})
    share_stages(recipe, [folder / each["name"] for each in record["measured"]], output)
    run(recipe)
    with timed(output, "measure"):
        figures = exam.figures(output / "package")
    holds = settings.bound.holds(figures["bytes"], record["parameters"], figures["tokens_per_second"])
    if settings.target is None:
        wanted = record[TEACHER]["answers"]["accuracy"] - settings.loss / 100
        holds = holds and figures["answers"]["accuracy"] >= wanted
    return {
        "name": candidate.name,
        "package": f"{candidate.name}/package",
        "bits_per_weight": 8 * figures["bytes"] / record["parameters"],
        **figures,
        "holds": holds,
    }


def _choose(record: dict[str, Any], folder: Path, settings: CompressConfig) -> None:
    found = best(packages_of(record), settings.bound)
    record["chosen"] = None if found is None else found["name"]
    write_json(folder / COMPRESS, record)


def _make_rival(
    promising: Sequence[Candidate],
    record: dict[str, Any],
    folder: Path,
    ref: ModelRef,
    settings: CompressConfig,
    exam: Exam,
) -> None:
    """Make dense int4, the rival of the chosen package or of the last one; it may be chosen itself."""
    measured = record["measured"]
    name = record["chosen"] or measured[-1]["name"]
    beside = next(each for each in promising if each.name == name)
    if exam.rows is None or record.get("rival") is not None or not beside.sparsity:
        return
    rival = replace(beside, sparsity=0.0, values="int4", added_loss=None)
    known = (each for each in measured if each["name"] == rival.name)
    with timed(folder, "rival"):
        record["rival"] = next(known, None) or _made(rival, record, folder, ref, settings, exam)
    _choose(record, folder, settings)


def share_stages(recipe: Recipe, others: Sequence[Path], folder: Path) -> None:
    """Link the sparse and the healed model of another candidate that has the same settings."""
    for other in others:
        earlier = load_recipe(other / RECIPE)
        same = {"sparse": recipe.sparsify == earlier.sparsify}
        same[HEALED_FOLDER] = same["sparse"] and recipe.heal == earlier.heal
        for name in (name for name, is_same in same.items() if is_same):
            if (other / name).is_dir() and not (folder / name).exists():
                partial = folder / f"{name}.linked"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(other / name, partial, copy_function=_linked)
                partial.rename(folder / name)


def _linked(source: str, target: str) -> str:
    """Link a file, or copy it where the file system has no links."""
    with suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
