"""The plan of a compression: the candidates in order, the effort that fits, and what each stage costs."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shears.adapt.prepare import Rows, read_training_rows
from shears.checkpoints.configuration import known_config
from shears.config import CompressConfig
from shears.config.compress import EFFORTS, EffortName
from shears.config.fields import TemplateName
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
    least_seconds,
)
from shears.runs.compress.losses import measured_losses, seconds_of_losses
from shears.runs.compress.measuring import NEW_TOKENS, ROUNDS, Questions, longest_answer, task_of_rows
from shears.runs.compress.recipes import WITH_SENSITIVITY, recipe_of, teacher_training
from shears.runs.compress.speeds import Speeds, measured_speeds
from shears.runs.compress.texts import Texts, asked_rows, written_tokens
from shears.runs.plan import PlannedStage, bytes_of, plan, quietly
from shears.runs.shapes import BF16_BYTES, Shape, shape_of
from shears.runs.stages import stages_of, template_of_run
from shears.runtime.forecast import Forecast, forecast_of, needed

logger = logging.getLogger(__name__)
MOST_OUTSIDE = 0.1  # share of a block's weights outside its linears, such as stacked experts
USUAL: EffortName = "usual"
LOSSES_SHARE = 0.2  # of the time that measuring the candidates' losses may take
FEW_ROWS = 500  # up to this many a warning says that steps, not epochs, decide


def planned(ref: ModelRef, settings: CompressConfig, texts: Texts, folder: Path, began: float) -> dict[str, Any]:
    """Return the record with every candidate in the order to try them, and the effort that fits.

    `began` is the monotonic time at which the call began. InputError for a target or a time that is
    out of reach, and for rows or texts that cannot be used.
    """
    rows = asked_rows(settings, texts.held_out)
    # a row without an answer is refused before minutes of measuring
    task = None if rows is None else task_of_rows(str(rows))
    shape = _shape(ref, settings)
    forecast = forecast_of(known_config(ref.folder), threads=settings.threads, new_tokens=NEW_TOKENS, rounds=ROUNDS)
    if settings.bound.kind == "tokens/s":
        needed(forecast)
    dense = _dense(ref, settings, shape, forecast)
    candidates = all_candidates(settings, shape, forecast)
    kept = _worthwhile(meeting(settings, candidates, shape.parameters), settings, dense["bytes"])
    smallest = recipe_of(min(kept, key=lambda each: each.bytes), settings, ref, str(texts.calibration))
    refuse_full_disk(folder, bytes_of(smallest, [stage.name for stage in stages_of(smallest, folder / "dry-run")]))
    training = _training_rows(ref, settings, texts)
    longest = None if task is None else longest_answer(task, training.train if training else [])
    asked = None if rows is None or task is None else Questions(rows, task, longest)
    template = text_template(template_of_run(smallest) or trained_template(ref.folder), load_tokenizer(ref))
    amounts = _amounts(ref, settings, texts, training, asked, template)
    found = efforts(settings, amounts)
    speeds, losses = None, None
    if texts.calibration.is_file():
        short = settings.model_copy(update={"sequence_length": found[USUAL].sequence_length})
        speeds = measured_speeds(ref, short, texts, training, asked)
        kinds = [(each.sparsity, each.values, each.embeddings) for each in kept]
        early = _Planner(ref, settings, texts, folder, ordered(kept, None), amounts, speeds, time.monotonic() - began)
        if len(kept) > 1 and early.has_time(found, seconds_of_losses(kinds, speeds.load, speeds.forward)):
            losses = measured_losses(ref, kinds, short, texts, template)
    best = ordered(kept, losses)
    others = sorted((each for each in candidates if each not in kept), key=lambda each: each.bytes)
    plan = _Planner(ref, settings, texts, folder, best, amounts, speeds, time.monotonic() - began)
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
        **plan.decided(found),
        "held_out": texts.held_out.name,
        "template": template,
        "measured": [],
        "chosen": None,
    }


def _worthwhile(kept: list[Candidate], settings: CompressConfig, dense: int) -> list[Candidate]:
    """Return the candidates, without a target those that are smaller than the dense model's `dense` bytes."""
    if settings.target is not None:
        return kept
    smaller = [each for each in kept if each.bytes < dense]
    if not smaller:
        raise InputError(
            f"a candidate must be smaller than the dense model's {dense / 1e9:.4g} GB, the smallest of {len(kept)} has "
            f"{min(each.bytes for each in kept) / 1e9:.4g} GB; name more --sparsities or --values"
        )
    return smaller


def _dense(ref: ModelRef, settings: CompressConfig, shape: Shape, forecast: Forecast | None) -> dict[str, Any]:
    """Return size and predicted speed of the dense model; InputError if it meets the target as it is."""
    speed = forecast.tokens_per_second(0.0, "bf16", "keep") if forecast else None
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


def _training_rows(ref: ModelRef, settings: CompressConfig, texts: Texts) -> Rows | None:
    """Return the rows to train on, tokenized as the training will; None without data."""
    if settings.data is None:
        return None
    with quietly():
        training = read_training_rows(ref, teacher_training(settings, str(texts.calibration)))
    count = len(training.train)
    if count <= FEW_ROWS:
        logger.warning("only %d rows to train on: steps are counted, not epochs; more rows answer better", count)
    return training


def _amounts(
    ref: ModelRef,
    settings: CompressConfig,
    texts: Texts,
    training: Rows | None,
    asked: Questions | None,
    template: TemplateName,
) -> Amounts:
    """Return how much there is to read, instructions of the text in `template`.

    Of a text that is yet to be written, what will be asked for.
    """
    rows = training.train if training is not None else []
    length = sum(len(row.input_ids) for row in rows) / max(len(rows), 1)
    questions = 0 if asked is None else len(read_rows(str(asked.rows)))
    if not texts.calibration.is_file():
        return Amounts(len(rows), length, written_tokens(settings), settings.sequence_length, questions)
    tokenizer = load_tokenizer(ref)
    with quietly():
        text, held_out = (len(text_tokens(str(file), tokenizer, template=template)) for file in texts)
    if text < FEWEST_SEQUENCES * settings.sequence_length:
        logger.warning("the text has only %d tokens, all of which are taken, in shorter sequences", text)
    return Amounts(len(rows), length, text, held_out, questions)


@dataclass(frozen=True)
class _Planner:
    """Decides the effort, and says what its stages do and cost."""

    ref: ModelRef
    settings: CompressConfig
    texts: Texts
    folder: Path
    best: Sequence[Candidate]
    amounts: Amounts
    speeds: Speeds | None
    spent: float

    def has_time(self, found: Mapping[str, Effort], seconds: float) -> bool:
        """Return whether losses of the candidates, which take so many seconds, leave enough of the time.

        The log says so where they do not. InputError for a time that is too short without them.
        """
        limit = self.settings.seconds
        if limit is None or self.speeds is None:
            return True
        costs = self._costs(self.speeds)
        effort = fitted(found, costs, self.spent)
        rest = limit - self.spent - least_seconds(found, costs)
        if seconds <= min(LOSSES_SHARE * limit, rest):
            return True
        logger.warning("measuring the candidates' losses would take %.0f s: %s; %s", seconds, RULE, effort.name)
        return False

    def decided(self, found: Mapping[str, Effort]) -> dict[str, Any]:
        """Return the effort, the seconds of each by name, the speeds, and the stages of the first candidate."""
        named = self.settings.time if self.settings.time in EFFORTS else USUAL
        if self.speeds is None:
            effort, totals, seconds, asked = found[str(named)], {}, {}, None
        else:
            costs = self._costs(self.speeds)
            effort = found[str(named)] if self.settings.seconds is None else fitted(found, costs, self.spent)
            totals = {name: self.spent + sum(costs.seconds(each).values()) for name, each in found.items()}
            told = ", ".join(f"{name} {total / 60:.1f}" for name, total in totals.items())
            logger.info("minutes: %s; taking %s, %s steps", told, effort.name, effort.steps or "no")
            seconds = {"plan": self.spent, **costs.seconds(effort)}
            asked = costs.asked_as_it_came
        return {
            "asked_as_it_came": asked or None,
            "first": self.first.name,
            "effort": effort.as_data(),
            "efforts": {name: round(total, 1) for name, total in totals.items()},
            "speeds": None if self.speeds is None else self.speeds.as_data(),
            "stages": self._stages(effort, seconds, asked),
        }

    @property
    def first(self) -> Candidate:
        """The candidate that is made first."""
        found = smallest_enough(self.best, []) if self.settings.target is None else None
        return found or self.best[0]

    def _costs(self, speeds: Speeds) -> Costs:
        attempts = 1
        if self.settings.target is None:
            attempts = min(self.settings.attempts, len(front(self.best)).bit_length())
        return Costs(speeds, self.amounts, self.settings, self.first, attempts)

    def _stages(self, effort: Effort, seconds: Mapping[str, float], asked: int | None) -> list[dict[str, Any]]:
        """Return what every stage does, its seconds, memory and disk; None where they are unknown.

        `asked` of the questions are answered by the model as it came; None: all.
        """
        settings = effort.applied(self.settings, self.folder)
        first = self.first
        dense = replace(first, sparsity=0.0, values="int4")
        own, rival = (self._planned(each, settings) for each in (first, dense))
        size = first.bytes
        loaded = own["sparsify"].memory
        trained = rival["train"].memory if "train" in rival else None
        costs: dict[str, tuple[int | None, int | None]] = {
            **{name: (stage.memory, stage.disk) for name, stage in own.items()},
            "plan": (loaded, 0), "dense": (loaded, 0), "measure": (size, 0),
            TEACHER: (trained, rival["train"].disk if "train" in rival else None),
            "rival": (trained, sum(stage.disk or 0 for stage in rival.values())),
        }  # fmt: skip
        words = sentences(effort, self.settings, self.amounts, first, asked)
        names = seconds or [*([TEACHER] if effort.teaches else []), *own]
        return [
            {"name": name, "work": words[name], "seconds": seconds.get(name), "memory": costs[name][0],
             "disk": costs[name][1]}
            for name in names
        ]  # fmt: skip

    def _planned(self, candidate: Candidate, settings: CompressConfig) -> dict[str, PlannedStage]:
        untaught = settings.model_copy(update={"teacher": self.settings.teacher})  # its folder is not there yet
        recipe = recipe_of(candidate, untaught, self.ref, str(self.texts.calibration))
        return {stage.name: stage for stage in plan(recipe, self.folder / "dry-run").stages}


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
