"""The plan of a compression: the candidates in order, the effort that fits, and what each stage costs."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from shears.adapt.prepare import Rows, read_training_rows
from shears.checkpoints.configuration import known_config
from shears.config import CompressConfig
from shears.config.compress_options import EFFORTS
from shears.data.calibration import text_template, text_tokens
from shears.data.rows import read_rows
from shears.errors import InputError
from shears.models.properties import positions_in, refuse_longer
from shears.models.ref import ModelRef
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import as_data
from shears.records.folders import refuse_full_disk
from shears.records.timing import machine
from shears.records.trained_form import trained_template
from shears.records.version import __version__
from shears.runs.compress.added_losses import AddedLosses, measured_losses, seconds_of_losses
from shears.runs.compress.candidates import (
    MEASURED,
    RULE,
    Candidate,
    all_candidates,
    front,
    meeting,
    ordered,
    smallest_enough,
)
from shears.runs.compress.effort import (
    BATCH,
    FEWEST_SEQUENCES,
    TEACHER,
    Amounts,
    Costs,
    Effort,
    efforts,
    fitted,
    left_out,
    total_seconds,
)
from shears.runs.compress.exam import (
    NEW_TOKENS,
    ROUNDS,
    Exam,
    Texts,
    asked_rows,
    longest_answer,
    num_windows,
    task_of_rows,
    written_tokens,
)
from shears.runs.compress.recipes import WITH_SENSITIVITY, recipe_of, teacher_training
from shears.runs.compress.speeds import Speeds, measured_speeds
from shears.runs.plan import PlannedStage, bytes_of, plan, quietly
from shears.runs.shapes import BF16_BYTES, Shape, shape_of
from shears.runs.stages import stages_of, template_of_run
from shears.runtime.forecast import forecast_of

logger = logging.getLogger(__name__)
MOST_OUTSIDE = 0.1  # share of a block's weights outside its linears, such as stacked experts
LOSSES_SHARE = 0.2  # of the time that measuring the candidates' losses may take
FEW_ROWS = 500  # up to this many a warning says that steps, not epochs, decide


class Inputs(NamedTuple):
    """What a plan is made from: the model, the settings, the texts, and the folder of the result."""

    ref: ModelRef
    settings: CompressConfig
    texts: Texts
    folder: Path


def planned(inputs: Inputs, began: float) -> dict[str, Any]:
    """Return the record with every candidate in the order to try them, and the effort that fits.

    `began` is the monotonic time at which the call began. InputError for a target that is out of
    reach, and for rows or texts that cannot be used.
    """
    ref, settings, texts, folder = inputs
    rows = asked_rows(settings, texts.held_out)
    task = None if rows is None else task_of_rows(str(rows))  # refuses a row without an answer, before minutes pass
    shape = _shape(ref, settings)
    forecast = forecast_of(known_config(ref.folder), threads=settings.threads, new_tokens=NEW_TOKENS, rounds=ROUNDS)
    if settings.bound.kind == "tokens/s" and forecast is None:
        needs = "a target in tok/s needs a model that the native decoder covers, and its kernels"
        raise InputError(f"{needs}; name a target in bits or GB")
    dense = _dense(ref, settings, shape, forecast.tokens_per_second(0.0, "bf16", "keep") if forecast else None)
    candidates = all_candidates(settings, shape, forecast)
    kept = meeting(settings, candidates, shape.parameters)
    if settings.target is None:
        kept = _smaller(kept, dense["bytes"])
    smallest = recipe_of(min(kept, key=lambda each: each.bytes), settings, ref, str(texts.calibration))
    refuse_full_disk(folder, bytes_of(smallest, [stage.name for stage in stages_of(smallest, folder / "dry-run")]))
    training = _training_rows(inputs)
    longest = None if task is None else longest_answer(task, training.train if training else [])
    template = text_template(template_of_run(smallest) or trained_template(ref.folder), load_tokenizer(ref))
    windows = num_windows(rows is not None, settings.num_samples)
    exam = Exam(texts.held_out, settings.sequence_length, windows, template, rows, task, longest)
    amounts = _amounts(inputs, training, exam)
    found = efforts(settings, amounts)
    short = settings.model_copy(update={"sequence_length": found["usual"].sequence_length})
    speeds = measured_speeds(ref, short, texts, training, exam) if texts.calibration.is_file() else None
    losses = None if speeds is None else _losses(inputs._replace(settings=short), kept, speeds, exam)
    best = ordered(kept, losses)
    others = sorted((each for each in candidates if each not in kept), key=lambda each: each.bytes)
    return {
        "shears_version": __version__,
        "model": ref.recorded_name,
        "base_fingerprint": ref.fingerprint,
        "config": as_data(settings),
        "target": str(settings.bound),
        "machine": machine(),
        "parameters": shape.parameters,
        "dense": {**dense, "loss": losses.dense if losses else None},
        "order": MEASURED if losses else RULE,
        "candidates": [each.as_data() | {"meets": each in best} for each in (*best, *others)],
        "task": task,
        "longest_answer": longest,
        **_decided(inputs, best, amounts, found, speeds, time.monotonic() - began),
        "held_out": texts.held_out.name,
        "template": template,
        "measured": [],
        "chosen": None,
    }


def _smaller(candidates: Sequence[Candidate], size: int) -> list[Candidate]:
    """Return the candidates that are smaller than `size` bytes; InputError if there are none."""
    smaller = [each for each in candidates if each.bytes < size]
    if not smaller:
        what = f"a candidate must be smaller than the dense model's {size / 1e9:.4g} GB"
        raise InputError(f"{what}; name more --sparsities or --values")
    return smaller


def _losses(inputs: Inputs, kept: Sequence[Candidate], speeds: Speeds, exam: Exam) -> AddedLosses | None:
    """Return the losses that sparsities and formats add; None where measuring them takes too much of the time."""
    kinds = [(each.sparsity, each.values, each.embeddings) for each in kept]
    seconds = seconds_of_losses(kinds, speeds.load, speeds.forward)
    if len(kept) == 1:
        return None
    if seconds > LOSSES_SHARE * (inputs.settings.seconds or float("inf")):
        logger.warning("measuring the candidates' losses would take %.0f s: %s", seconds, RULE)
        return None
    return measured_losses(inputs.ref, kinds, inputs.settings, inputs.texts, exam.template)


def _dense(ref: ModelRef, settings: CompressConfig, shape: Shape, speed: float | None) -> dict[str, Any]:
    """Return size and predicted speed of the dense model; InputError if it meets the target as it is."""
    size = shape.file_bytes or BF16_BYTES * shape.parameters
    if settings.target is not None and settings.bound.holds(size, shape.parameters, speed):
        words = "" if speed is None else f", {speed:.1f} tokens/s in bf16"
        raise InputError(
            f"the target must need a compression, {ref.name} meets it as it is ({settings.bound}): "
            f"{size / 1e9:.4g} GB{words}; name a tighter target"
        )
    return {"bytes": size, "tokens_per_second": speed}


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


def _training_rows(inputs: Inputs) -> Rows | None:
    """Return the rows to train on, tokenized as the training will; None without data."""
    if inputs.settings.data is None:
        return None
    with quietly():
        training = read_training_rows(inputs.ref, teacher_training(inputs.settings, str(inputs.texts.calibration)))
    if len(training.train) <= FEW_ROWS:
        logger.warning("only %d rows to train on: more rows answer better", len(training.train))
    return training


def _amounts(inputs: Inputs, training: Rows | None, exam: Exam) -> Amounts:
    """Return how much there is to read; of a text that is yet to be written, what will be asked for."""
    settings = inputs.settings
    rows = training.train if training is not None else []
    length = sum(len(row.input_ids) for row in rows) / max(len(rows), 1)
    questions = 0 if exam.rows is None else len(read_rows(str(exam.rows)))
    if not inputs.texts.calibration.is_file():
        return Amounts(len(rows), length, written_tokens(settings), settings.sequence_length, questions)
    tokenizer = load_tokenizer(inputs.ref)
    with quietly():
        text, held_out = (len(text_tokens(str(file), tokenizer, template=exam.template)) for file in inputs.texts)
    if text < FEWEST_SEQUENCES * settings.sequence_length:
        logger.warning("the text has only %d tokens, all of which are taken, in shorter sequences", text)
    return Amounts(len(rows), length, text, held_out, questions)


def _decided(
    inputs: Inputs,
    best: Sequence[Candidate],
    amounts: Amounts,
    found: Mapping[str, Effort],
    speeds: Speeds | None,
    spent: float,
) -> dict[str, Any]:
    """Return the effort, the seconds of each by name, the speeds, and the stages of the first candidate."""
    settings = inputs.settings
    first = (smallest_enough(best, []) if settings.target is None else None) or best[0]
    effort = found[settings.time if settings.time in EFFORTS else "usual"]
    totals = dict[str, float]()
    seconds: Mapping[str, float] = {}
    asked, missing = None, list[str]()
    if speeds is not None:
        tries = len(front(best)).bit_length() if settings.target is None else 1
        costs = Costs(speeds, amounts, settings, first, tries)
        totals = {name: spent + total_seconds(costs, each) for name, each in found.items()}
        asked = costs.asked_as_it_came
        if settings.seconds is not None:
            effort = fitted(found, costs, spent)
            over = total_seconds(costs, effort) + spent - settings.seconds
            missing = left_out(effort, found["thorough"], over)
        told = ", ".join(f"{name} {total / 60:.1f}" for name, total in totals.items())
        logger.info("minutes: %s; taking %s, %s steps", told, effort.name, effort.steps or "no")
        if missing:
            logger.warning("the time leaves out: %s", "; ".join(missing))
        seconds = {"plan": spent, **costs.seconds(effort)}
    return {
        "asked_as_it_came": asked or None,
        "first": first.name,
        "effort": asdict(effort),
        "left_out": missing,
        "efforts": {name: round(total, 1) for name, total in totals.items()},
        "speeds": None if speeds is None else {name: float(f"{value:.3g}") for name, value in asdict(speeds).items()},
        "stages": _stages(inputs, effort, first, seconds, sentences(effort, settings, amounts, first, asked)),
    }


def _stages(
    inputs: Inputs, effort: Effort, first: Candidate, seconds: Mapping[str, float], words: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return what every stage does, its seconds, memory and disk; None where they are unknown."""
    settings = effort.applied(inputs.settings, inputs.folder)
    settings = settings.model_copy(update={"teacher": inputs.settings.teacher})  # its folder is not there yet

    def planned_stages(candidate: Candidate) -> dict[str, PlannedStage]:
        recipe = recipe_of(candidate, settings, inputs.ref, str(inputs.texts.calibration))
        return {stage.name: stage for stage in plan(recipe, inputs.folder / "dry-run").stages}

    own, rival = planned_stages(first), planned_stages(replace(first, sparsity=0.0, values="int4"))
    loaded = own["sparsify"].memory
    training = rival.get("train")
    trained = training.memory if training else None
    costs: dict[str, tuple[int | None, int | None]] = {
        **{name: (stage.memory, stage.disk) for name, stage in own.items()},
        "plan": (loaded, 0),
        "dense": (loaded, 0),
        "measure": (first.bytes, 0),
        TEACHER: (trained, training.disk if training else None),
        "rival": (trained, sum(stage.disk or 0 for stage in rival.values())),
    }
    names = seconds or [*([TEACHER] if effort.teaches else []), *own]
    return [
        {"name": name, "work": words[name], "seconds": seconds.get(name), "memory": costs[name][0],
         "disk": costs[name][1]}
        for name in names
    ]  # fmt: skip


def sentences(
    effort: Effort, settings: CompressConfig, amounts: Amounts, first: Candidate, asked: int | None = None
) -> dict[str, str]:
    """Return what each stage does, in one sentence; `asked`: questions to the model as it came (None: all)."""
    epochs = (effort.steps or 0) * BATCH / max(amounts.rows, 1)
    training = f"{effort.steps} steps of {BATCH} rows, {epochs:.1f} times the {amounts.rows:,} rows"
    samples = min(effort.num_samples, max(amounts.text_tokens // effort.sequence_length, 1))
    text = f"{samples} sequences of {effort.sequence_length} tokens"
    by = f"{effort.method}{' with sensitivity' * (effort.method in WITH_SENSITIVITY)}"
    grid = " on the grid of int4" * (first.values == "int4")
    taught = " beside the teacher" * (effort.teaches or settings.teacher is not None)
    answers = f" and {amounts.questions:,} answers" * (amounts.questions > 0)
    first_answers = f" and {asked:,} answers" if asked else answers
    zeros = f"sets {100 * first.sparsity:g} % of the weights to zero by {by} on {text}"
    return {
        "plan": "measures the speeds of this machine and the loss that each format adds",
        "dense": f"measures loss{first_answers} of the model as it came",
        TEACHER: f"trains LoRA on the dense model, {training}",
        "sparsify": zeros if first.sparsity else "copies the dense weights",
        "heal": f"trains the kept weights{grid} on {effort.heal or 0:,} tokens to predict as the dense model",
        "train": f"trains an adapter of one rank{grid}, {training}{taught}",
        "export": f"merges what was trained and writes {first.values} weights",
        "measure": f"measures size, speed, loss{answers} of the package",
        "rival": f"trains dense int4 alike and measures its size, speed, loss{answers}",
    }
