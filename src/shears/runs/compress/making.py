"""Make and measure packages until one meets the bound, and the dense models that it is compared with."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shears.adapt.train import train
from shears.config import CompressConfig, Recipe
from shears.config.compress import Bound
from shears.config.fields import StageConfig
from shears.config.resolve import read_yaml
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.errors import memory_of
from shears.models.ref import ModelRef
from shears.records.artifacts import COMPRESS, RECIPE, as_data, write_json
from shears.records.figures import packages_of
from shears.records.folders import partial_folder
from shears.records.timing import timed
from shears.runs.baselines import HEALED_FOLDER
from shears.runs.compress.candidates import Candidate, figures_of, smallest_enough
from shears.runs.compress.effort import TEACHER
from shears.runs.compress.measuring import Examiner, Questions, task_of_rows
from shears.runs.compress.recipes import recipe_of, teacher_training
from shears.runs.compress.texts import Texts, asked_rows
from shears.runs.pipeline import run
from shears.training.teacher import find_teacher

logger = logging.getLogger(__name__)


class Road:
    """A compression on its way: its record, which is written after every measurement, and its folder."""

    def __init__(
        self, record: dict[str, Any], settings: CompressConfig, folder: Path, ref: ModelRef, texts: Texts
    ) -> None:
        self.record = record
        self.settings = settings
        self.folder = folder
        self.ref = ref
        self.texts = texts
        self.promising = [Candidate.from_data(each) for each in record["candidates"] if each["meets"]]
        rows = asked_rows(settings, texts.held_out)
        asked = None
        if rows is not None:  # a record of an earlier version names no task
            asked = Questions(rows, record.get("task") or task_of_rows(str(rows)), record.get("longest_answer"))
        template = record.get("template", DEFAULT_TEMPLATE)  # a record of an earlier version names none
        self.examiner = Examiner(settings, texts.held_out, asked, template)

    def travelled(self) -> dict[str, Any]:
        """Make and measure what is not there yet; return the record.

        With rows to answer, a sparse package also gets a rival: the dense model in int4, trained
        alike. The one that meets the bound and has more right answers is chosen; without a target,
        the smallest that has enough.
        """
        self._measure_dense()
        self._teach()
        measured = self.record["measured"]
        while len(measured) < self.settings.attempts:
            candidate = following(self.promising, measured, self.settings.bound, self.record["parameters"])
            if candidate is None:
                break
            measured.append(self._made(candidate))
            self._choose()
        self._make_rival()
        return self.record

    def _write(self) -> None:
        write_json(self.folder / COMPRESS, self.record)

    def _measure_dense(self) -> None:
        dense = self.record["dense"]
        if dense.get("held_out_loss") is not None:
            return
        with timed(self.folder, "dense"):
            dense["held_out_loss"] = self.examiner.loss(self.ref)
            dense["answers"] = self.examiner.answers_untrained(self.ref, self.record.get("asked_as_it_came"))
        self._write()

    def _teach(self) -> None:
        """Train the dense model on the rows, if planned; measure it where packages are compared with it."""
        name = self.settings.teacher
        if name is None or self.record.get(TEACHER) is not None:
            return
        output = self.folder / TEACHER
        with timed(self.folder, TEACHER):
            if name == str(output) and not output.is_dir():
                config = teacher_training(self.settings, str(self.texts.calibration))
                with memory_of("train"):
                    train(self.ref.folder, output, resume=partial_folder(output).exists(), **as_data(config))
            answers = None
            if self.settings.target is None:
                source = find_teacher(name)
                answers = self.examiner.answers(source.model, source.adapter)
        self.record[TEACHER] = {"name": name, "answers": answers}
        self._write()

    def _made(self, candidate: Candidate) -> dict[str, Any]:
        """Make the package of a candidate and return its figures."""
        logger.info("%s: %s predicted", candidate.name, figures_of(candidate))
        recipe = recipe_of(candidate, self.settings, self.ref, str(self.texts.calibration)).model_copy(
            update={"output": str(self.folder / candidate.name)}
        )
        _share(recipe, [self.folder / each["name"] for each in self.record["measured"]], self.folder / candidate.name)
        run(recipe)
        with timed(self.folder / candidate.name, "measure"):
            return self.examiner.figures(candidate, self.folder, self.record["parameters"], self._wanted())

    def _wanted(self) -> float | None:
        """Return the accuracy that a package must have without a target; None with one."""
        if self.settings.target is not None:
            return None
        return float(self.record[TEACHER]["answers"]["accuracy"]) - self.settings.loss / 100

    def _choose(self) -> None:
        found = best(packages_of(self.record), self.settings.bound)
        self.record["chosen"] = None if found is None else found["name"]
        self._write()

    def _make_rival(self) -> None:
        """Make dense int4, the rival of the chosen package or of the last one; it may be chosen itself."""
        measured = self.record["measured"]
        if self.examiner.questions is None or not measured or self.record.get("rival") is not None:
            return
        name = self.record["chosen"] or measured[-1]["name"]
        beside = next(each for each in self.promising if each.name == name)
        if not beside.sparsity:
            return
        rival = replace(beside, sparsity=0.0, values="int4", added_loss=None)
        known = (each for each in measured if each["name"] == rival.name)
        with timed(self.folder, "rival"):
            self.record["rival"] = next(known, None) or self._made(rival)
        self._choose()


def best(figures: Sequence[Mapping[str, Any]], bound: Bound) -> Mapping[str, Any] | None:
    """Return the package to choose of those that hold the bound; None if none does.

    It has the most right answers, and is the first or, at equal answers, the smaller one. With a
    bound on answers it is the smallest.
    """
    holding = [each for each in figures if each["holds"]]
    if bound.kind == "points":
        return min(holding, key=lambda each: each["bytes"], default=None)
    return max(
        holding, key=lambda each: ((each.get("answers") or {}).get("accuracy", 0.0), -each["bytes"]), default=None
    )


def following(
    promising: Sequence[Candidate], measured: Sequence[Mapping[str, Any]], bound: Bound, weights: int
) -> Candidate | None:
    """Return the next candidate to make, None at the end.

    With a bound on answers, the bisection of `smallest_enough`. Else the first candidate, until one
    holds: the first that meets the target if predictions err as they did last time. If none does
    then, the smallest or the fastest that is left, unless that is no better than what was tried.
    """
    if bound.kind == "points":
        return smallest_enough(promising, measured)
    if any(each["holds"] for each in measured):
        return None
    if not measured:
        return promising[0]
    last = measured[-1]
    names = {each["name"] for each in measured}
    left = [each for each in promising if each.name not in names]
    before = next(each for each in promising if each.name == last["name"])
    larger = last["bytes"] / before.bytes
    is_speed = bound.kind == "tokens/s"
    faster = (last["tokens_per_second"] or 0.0) / before.tokens_per_second if before.tokens_per_second else 1.0
    for each in left:
        speed = each.tokens_per_second * faster if each.tokens_per_second is not None else None
        if bound.holds(each.bytes * larger, weights, speed):
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
