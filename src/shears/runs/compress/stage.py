"""Predict candidates for a bound, make the one that should lose least, measure it, or go on."""

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from shears.checkpoints.conversion import known_config
from shears.checkpoints.packed.file import PACKAGE_FILE
from shears.config import CompressConfig, Recipe
from shears.config.embedded import EMBEDDED
from shears.config.fields import StageConfig
from shears.config.resolve import build, read_yaml
from shears.config.sparsify import EMBEDDED_CALIBRATION
from shears.config.write import is_written
from shears.data.calibration import calibration_batches
from shears.data.example import OWN_NAMES, Row, renamed
from shears.data.examples import check_rows
from shears.data.rows import as_json_lines, is_saved, read_rows, saved_rows
from shears.errors import InputError
from shears.evaluation.run import evaluate
from shears.models.devices import set_threads
from shears.models.load import load_tokenizer
from shears.models.properties import positions_in, refuse_longer
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.records.artifacts import (
    COMPRESS,
    RECIPE,
    as_data,
    check_input,
    read_object,
    reading,
    refuse_changes,
    write_json,
)
from shears.records.folders import named_folder, refuse_full_disk, refuse_taken, run_lock
from shears.records.paths import expanded
from shears.records.timing import machine
from shears.records.version import __version__
from shears.runs.baselines import HEALED_FOLDER
from shears.runs.compress.answers import answers_of, task_of_rows
from shears.runs.compress.candidates import (
    MEASURED,
    RULE,
    Candidate,
    all_candidates,
    dtype_of,
    figures_of,
    meeting,
    ordered,
    recipe_of,
)
from shears.runs.compress.losses import AddedLosses, measured_losses
from shears.runs.pipeline import run
from shears.runs.plan import bytes_of, plan
from shears.runs.shapes import BF16_BYTES, Shape, shape_of
from shears.runs.stages import stages_of
from shears.runtime.forecast import forecast_of, needed
from shears.runtime.speed import package_decoding
from shears.training.teacher import find_teacher, refuse_other_vocabulary
from shears.writing.stage import text_source

logger = logging.getLogger(__name__)
NEW_TOKENS = 32  # that are generated to measure a speed
ROUNDS = 3  # measurements of a speed; the median counts
HELD_OUT = 10  # the last of so many parts of the calibration text is held out
MOST_OUTSIDE = 0.1  # share of a block's weights outside its linears, such as stacked experts
PASSES = {"sparsify": 2, "heal": 5}
"""Forward passes of the dense model that a stage's work equals, by token: sparsify walks each block
twice; heal asks the dense model, and trains the sparse one forward and backward (about three, and
one to recompute)."""


class Texts(NamedTuple):
    """Files of the calibration text and its held-out part; the model may have yet to write them."""

    calibration: Path
    held_out: Path


def compress(model: str | Path, output: str | Path, *, dry_run: bool = False, **config: Any) -> dict[str, Any]:
    """Make a package of `model` that meets a bound in `output`; return the record, COMPRESS there.

    The keywords are the fields of `CompressConfig`. Each candidate is a run in a folder of its own.
    An interrupted call continues with the plan that it made. `dry_run` returns the plan and writes
    nothing. InputError, before anything is written, for a bound that no candidate is predicted to
    meet (with the nearest one), for a model that meets it as it is, and for a text that cannot be
    used.
    """
    settings = build(CompressConfig, "compress", config)
    set_threads(settings.threads)
    folder = named_folder(expanded(output)).resolve()
    ref = _checked(model, settings, folder)
    if not dry_run and (record := _begun(folder, ref, settings)) is not None:
        logger.info("%s: continuing with the plan of %s", folder, COMPRESS)
        with run_lock(folder):
            return _attempted(record, settings, folder, ref)
    source, columns = _source(ref, settings, dry_run)
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:  # the model has not written it yet
            texts = Texts(Path(scratch) / "calibration.jsonl", Path(scratch) / "held_out.jsonl")
        else:
            other = settings.test if settings.calibration is None else None
            texts = split_text(source, Path(scratch), columns, other)
        try:
            record = _planned(ref, settings, texts, folder)
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
        return _attempted(record, settings, folder, ref)


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
    begun = folder / COMPRESS
    recorded = read_object(begun).get("base_fingerprint") if begun.is_file() else None
    ref = resolve(model, dtype_of(str(model)), recorded)
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
        refuse_changes(folder, before, as_data(settings), CompressConfig)
        check_input(f"model of {folder}", record["base_fingerprint"], ref.fingerprint)
        _check_plan(record)
        texts = _texts_in(folder, record)
    for file in texts:
        if not file.is_file():
            raise InputError(f"{folder} must hold {file.name}, on which its plan was made; choose another output")
    return record


def _texts_in(folder: Path, record: Mapping[str, Any]) -> Texts:
    held_out = Path(record["held_out"]).name
    return Texts(folder / held_out.replace("held_out", "calibration"), folder / held_out)


def _check_plan(record: Mapping[str, Any]) -> None:
    """Raise one of RECORD_ERRORS for a record that `_planned` and `_attempted` did not make."""
    promising = {each["name"] for each in record["candidates"] if each["meets"]}
    for each in record["candidates"]:
        if (candidate := Candidate.from_data(each)).name != each["name"] or not figures_of(candidate):
            raise ValueError(f"its candidate {each['name']!r:.100} has another name")
    if not promising or not isinstance(record["dense"], dict) or not record["parameters"] > 0:
        raise ValueError("it has no plan")
    for each in record["measured"]:
        if each["name"] not in promising or not each["bytes"] > 0:
            raise ValueError("it measured what was not planned")
    if record["chosen"] is not None and record["chosen"] not in {each["name"] for each in record["measured"]}:
        raise ValueError("it chose what was not measured")


def _source(ref: ModelRef, settings: CompressConfig, dry_run: bool) -> tuple[str | None, Mapping[str, str]]:
    """Return the calibration text and its columns; None where the model would have to write it for a dry run."""
    if settings.calibration is None:
        return settings.data or EMBEDDED_CALIBRATION, settings.columns
    if not is_written(settings.calibration):
        return settings.calibration, settings.columns
    if dry_run:
        return None, OWN_NAMES
    tokens = max(2 * settings.num_samples * settings.sequence_length, settings.heal or 0)
    return text_source(settings.calibration, ref, tokens, settings.seed, settings.columns)


def split_text(source: str, folder: Path, columns: Mapping[str, str] = OWN_NAMES, test: str | None = None) -> Texts:
    """Write a text and its held-out part, `test` or the text's last tenth, to `folder`; return both.

    A .txt file is cut at the end of a line. Columns of rows get the names of `columns`. InputError
    for a text that cannot be read or has fewer than two parts.
    """
    if source.lower().endswith(".txt"):
        parts = _text_parts(source)
        ending = ".txt"
    else:
        rows = _rows_of(source, columns)
        cut = len(rows) - max(len(rows) // HELD_OUT, 1)
        own, held_out = (rows[:cut], rows[cut:]) if test is None else (rows, _rows_of(test, columns))
        parts = as_json_lines(own), as_json_lines(held_out)
        ending = ".jsonl"
    if not all(part.strip() for part in parts):
        raise InputError(f"the calibration text must have a part to hold out, got less than two parts in {source}")
    texts = Texts(folder / f"calibration{ending}", folder / f"held_out{ending}")
    for file, part in zip(texts, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    return texts


def _rows_of(source: str, columns: Mapping[str, str]) -> list[Row]:
    rows = saved_rows(source) if is_saved(source) else read_rows(source)
    return renamed(rows, columns, source)


def asked_rows(settings: CompressConfig, held_out: Path) -> Path | None:
    """Return the file of the rows that the models answer; None if there is none to answer."""
    if settings.data is None:
        return None
    if settings.calibration is None:
        return held_out
    return None if settings.test is None else expanded(settings.test)


def _text_parts(source: str) -> tuple[str, str]:
    try:
        text = expanded(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text must be a readable UTF-8 file, got {source}: {error}; check the path") from None
    last = len(text) - len(text) // HELD_OUT
    cut = text.rfind("\n", len(text) // 2, last) + 1 or last
    return text[:cut], text[cut:]


def _planned(ref: ModelRef, settings: CompressConfig, texts: Texts, folder: Path) -> dict[str, Any]:
    """Return the record with every candidate in the order to try them."""
    rows = asked_rows(settings, texts.held_out)
    if rows is not None:
        task_of_rows(str(rows))  # a row without an answer is refused before minutes of measuring
    shape = _shape(ref, settings)
    forecast = forecast_of(known_config(ref.folder), threads=settings.threads, new_tokens=NEW_TOKENS, rounds=ROUNDS)
    if settings.bound.kind == "tokens/s":
        needed(forecast)
    dense_speed = forecast.tokens_per_second(0.0, "bf16", "keep") if forecast else None
    dense_bytes = shape.file_bytes or BF16_BYTES * shape.parameters
    if settings.bound.holds(dense_bytes, shape.parameters, dense_speed):
        speed = "" if dense_speed is None else f", {dense_speed:.1f} tokens/s in bf16"
        raise InputError(
            f"the target must need a compression, {ref.name} meets it as it is ({settings.bound}): "
            f"{dense_bytes / 1e9:.4g} GB{speed}; name a tighter target"
        )
    candidates = all_candidates(settings, shape, forecast)
    kept = meeting(settings, candidates, shape.parameters)
    smallest = recipe_of(min(kept, key=lambda each: each.bytes), settings, ref.name, str(texts.calibration))
    stages = stages_of(smallest, folder / "dry-run")
    refuse_full_disk(folder, bytes_of(smallest, [stage.name for stage in stages]))
    losses = None
    if texts.calibration.is_file():
        tokenizer = load_tokenizer(ref)  # a short text is refused before minutes of measuring
        calibration_batches(
            str(texts.calibration), tokenizer, settings.num_samples, settings.sequence_length, 1, settings.seed
        )
        kinds = [(each.sparsity, each.values, each.embeddings) for each in kept]
        losses = measured_losses(ref, kinds, settings, str(texts.calibration), str(texts.held_out))
    best = ordered(kept, losses)
    others = sorted((each for each in candidates if each not in kept), key=lambda each: each.bytes)
    recipe = recipe_of(best[0], settings, ref.name, str(texts.calibration))
    return {
        "shears_version": __version__,
        "model": ref.recorded_name,
        "base_fingerprint": ref.fingerprint,
        "config": as_data(settings),
        "target": str(settings.bound),
        "machine": machine(),
        "parameters": shape.parameters,
        "dense": {"bytes": dense_bytes, "tokens_per_second": dense_speed, "loss": losses.dense if losses else None},
        "order": MEASURED if losses else RULE,
        "candidates": [each.as_data() | {"meets": each in best} for each in (*best, *others)],
        "stages": _stages(recipe, folder, texts, losses),
        "held_out": texts.held_out.name,
        "measured": [],
        "chosen": None,
    }


def _shape(ref: ModelRef, settings: CompressConfig) -> Shape:
    """Return the shape of the model; InputError if it has experts or too small a context."""
    shape = shape_of(str(ref.folder))
    assert shape is not None, "the model was resolved"
    inside = shape.parameters - shape.beside
    if inside - shape.linear_weights > MOST_OUTSIDE * inside:
        raise InputError(
            f"compress needs a model whose blocks consist of linears, {ref.name} has others, such as experts; use "
            "shears run with a recipe"
        )
    refuse_longer(settings.sequence_length, positions_in(known_config(ref.folder)))
    return shape


def _stages(recipe: Recipe, folder: Path, texts: Texts, losses: AddedLosses | None) -> list[dict[str, Any]]:
    """Return work, memory, disk and, if forward passes were timed, seconds of every stage."""
    scratch = str(texts.calibration.parent)
    tokens = {
        "sparsify": recipe.sparsify.num_samples * recipe.sparsify.sequence_length * recipe.sparsify.needs_calibration,
        "heal": recipe.heal.tokens if recipe.heal else 0,
    }
    rows = []
    for stage in plan(recipe, folder / "dry-run").stages:
        seconds = None
        if losses is not None and stage.name in PASSES:
            seconds = PASSES[stage.name] * tokens[stage.name] * losses.seconds_per_token
        row = asdict(stage) | {"work": stage.work.replace(scratch, folder.name), "seconds": seconds}
        rows.append({key: row[key] for key in ("name", "work", "memory", "disk", "seconds")})
    return rows


def _attempted(record: dict[str, Any], settings: CompressConfig, folder: Path, ref: ModelRef) -> dict[str, Any]:
    """Make and measure candidates until one meets the target; return the record.

    With rows to answer, a sparse package also gets a rival: the dense model in int4, trained alike.
    """
    promising = [Candidate.from_data(each) for each in record["candidates"] if each["meets"]]
    held_out = _texts_in(folder, record).held_out
    weights = record["parameters"]
    rows = asked_rows(settings, held_out)
    if record["dense"].get("held_out_loss") is None:
        record["dense"]["held_out_loss"] = _loss(ref, held_out, settings)
        record["dense"]["answers"] = None if rows is None else answers_of(ref, rows)
        write_json(folder / COMPRESS, record)
    while record["chosen"] is None and len(record["measured"]) < settings.attempts:
        candidate = following(promising, record["measured"], settings, weights)
        if candidate is None:
            break
        figures = _made(candidate, record, settings, folder, ref)
        record["measured"].append(figures)
        record["chosen"] = candidate.name if figures["holds"] else None
        write_json(folder / COMPRESS, record)
    chosen = next((each for each in promising if each.name == record["chosen"]), None)
    if rows is not None and chosen is not None and chosen.sparsity and record.get("rival") is None:
        rival = replace(chosen, sparsity=0.0, values="int4")
        known = (each for each in record["measured"] if each["name"] == rival.name)
        record["rival"] = next(known, None) or _made(rival, record, settings, folder, ref)
        write_json(folder / COMPRESS, record)
    return record


def _made(
    candidate: Candidate, record: Mapping[str, Any], settings: CompressConfig, folder: Path, ref: ModelRef
) -> dict[str, Any]:
    """Make the package of a candidate and return its figures."""
    text, held_out = _texts_in(folder, record)
    logger.info("%s: %s predicted", candidate.name, figures_of(candidate))
    recipe = recipe_of(candidate, settings, ref.name, str(text)).model_copy(
        update={"output": str(folder / candidate.name)}
    )
    _share(recipe, [folder / each["name"] for each in record["measured"]], folder / candidate.name)
    run(recipe)
    return _figures(candidate, folder, held_out, settings, record["parameters"])


def following(
    promising: Sequence[Candidate], measured: Sequence[Mapping[str, Any]], settings: CompressConfig, weights: int
) -> Candidate | None:
    """Return the first candidate that meets the target if predictions err as they did last time.

    If none does then, the smallest or the fastest that is left, unless that is no better than what
    was tried. None at the end.
    """
    if not measured:
        return promising[0]
    last = measured[-1]
    names = {each["name"] for each in measured}
    left = [each for each in promising if each.name not in names]
    before = next(each for each in promising if each.name == last["name"])
    larger = last["bytes"] / before.bytes
    is_speed = settings.bound.kind == "tokens/s"
    faster = (last["tokens_per_second"] or 0.0) / before.tokens_per_second if before.tokens_per_second else 1.0
    for each in left:
        speed = each.tokens_per_second * faster if each.tokens_per_second is not None else None
        if settings.bound.holds(each.bytes * larger, weights, speed):
            return each
    rest = [each for each in left if (_speed(each) > _speed(before) if is_speed else each.bytes < before.bytes)]
    return min(rest, key=lambda each: -_speed(each) if is_speed else each.bytes, default=None)


def _speed(candidate: Candidate) -> float:
    return candidate.tokens_per_second or 0.0


def _share(recipe: Recipe, others: Sequence[Path], folder: Path) -> None:
    """Link the sparse and the healed model of another candidate that has the same settings."""
    for other in others:
        earlier = read_yaml(other / RECIPE)  # of any version
        same = {"sparse": _is_same(recipe.sparsify, earlier.get("sparsify"))}
        same[HEALED_FOLDER] = same["sparse"] and _is_same(recipe.heal, earlier.get("heal"))
        for name in (name for name, is_same in same.items() if is_same):
            if (other / name).is_dir() and not (folder / name).exists():
                partial = folder / f"{name}.linked"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(other / name, partial, copy_function=_linked)
                partial.rename(folder / name)


def _is_same(stage: StageConfig | None, recorded: Mapping[str, Any] | None) -> bool:
    """Return whether a recipe of any version has this configuration of a stage."""
    if stage is None or recorded is None:
        return stage is None and recorded is None
    return as_data(stage) == stage.of_record(recorded)


def _linked(source: str, target: str) -> str:
    """Link a file, or copy it where the file system has no links."""
    with suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


def _figures(
    candidate: Candidate, folder: Path, held_out: Path, settings: CompressConfig, weights: int
) -> dict[str, Any]:
    """Measure the package of a candidate: its size, its speed, its loss on the held-out text."""
    package = folder / candidate.name / "package"
    size = (package / PACKAGE_FILE).stat().st_size
    speed = package_decoding(package, NEW_TOKENS, ROUNDS)
    rows = asked_rows(settings, held_out)
    return {
        "name": candidate.name,
        "package": str(package.relative_to(folder)),
        "bytes": size,
        "bits_per_weight": 8 * size / weights,
        "tokens_per_second": speed["median"],
        "tokens_per_second_range": [speed["min"], speed["max"]],
        "loss": _loss(package, held_out, settings),
        "answers": None if rows is None else answers_of(package, rows),
        "holds": settings.bound.holds(size, weights, speed["median"]),
    }


def _loss(model: AnyModel, held_out: Path, settings: CompressConfig) -> float:
    """Return the loss on the held-out text in nats a token."""
    measured = evaluate(
        model, task="perplexity", data=str(held_out), device="cpu",
        sequence_length=settings.sequence_length, limit=settings.num_samples,
    )  # fmt: skip
    return math.log(measured.value)
