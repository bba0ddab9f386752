"""What a run's folder holds, read as it lies there; a stage that is not there is None."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shears.config.resolve import UNREADABLE
from shears.errors import InputError, first_line
from shears.records.artifacts import (
    BENCH,
    EVALUATION,
    MERGED,
    PACKAGE,
    RECIPE,
    RESULT,
    SEARCH_SPACE,
    SPARSITY,
    SUB_ADAPTER,
    TRAINED_BEFORE,
    TRAINING_LOG,
    TRAINING_TIMES,
    evaluation_file,
    read_object,
)
from shears.records.timing import read_times

Record = Mapping[str, Any]
TRAINED = ("search", "export")  # stages of a run that begin with what training gave


@dataclass(frozen=True)
class Run:
    """The records of a run. `figures` are the measurements by model, each with its examples.

    `times` are those at which stages were worked at, `step_times` the seconds of training steps; either may be empty.
    """

    folder: Path
    recipe: Record
    sparsity: Record | None
    space: Record | None
    log: Sequence[Record]
    result: Record | None
    sub_adapter: Record | None
    merged: Record | None
    package: Record | None
    bench: Record | None
    summary: Record | None
    figures: Mapping[str, Record]
    times: Sequence[Record]
    step_times: Mapping[int, float]

    @property
    def models(self) -> Sequence[Record]:
        """The rows of the summary: one a model, dense first, each with the details of its measurement."""
        rows: Sequence[Record] = self.summary["models"] if self.summary else ()
        return [{"details": self.figures.get(row["name"], {}).get("details", {}), **row} for row in rows]

    @property
    def exported(self) -> Record | None:
        """The record of what the run exported, in the recipe's format where several are there."""
        form = str((self.recipe.get("export") or {}).get("format"))
        found = {PACKAGE: self.package, MERGED: self.merged, SUB_ADAPTER: self.sub_adapter}
        wanted = {"package": PACKAGE, "merged": MERGED, "merged-sparse": MERGED}.get(form, SUB_ADAPTER)
        return found[wanted] or self.sub_adapter or self.merged or self.package

    @property
    def trains_alone(self) -> bool:
        """Whether the models before the last one were not trained: the run trains, and its base says of no training."""
        return self.space is not None and not (self.sparsity or {}).get(TRAINED_BEFORE)

    def worked_at(self, stage: str) -> Sequence[Record]:
        """Return each time that a stage was worked at."""
        return [line for line in self.times if line["stage"] == stage]

    def timed_steps(self) -> Sequence[tuple[Record, float]]:
        """Return the training steps whose seconds are known, with these."""
        return [(line, self.step_times[line["step"]]) for line in self.log if line["step"] in self.step_times]

    def stages(self) -> Iterator[tuple[str, Record]]:
        """Yield the stages that are there, each with its record."""
        named = {"sparsify": self.sparsity, "train": self.space, "search": self.result, "export": self.exported}
        yield from ((name, record) for name, record in named.items() if record)


def read_run(folder: Path) -> Run:
    """Return the records of a run's folder; InputError where it is none or a record is torn.

    What a stage left there before the recipe lost its section is of another run, and not read.
    """
    if not folder.is_dir():
        raise InputError(f"a report needs the folder of a run, and there is no {folder}; make one with shears run")
    recipe = _yaml(folder / RECIPE)
    left_out = {name for name in ("train", "search", "evaluate") if name in recipe and recipe[name] is None}

    def of(stage: str, path: Path) -> Record | None:
        return _record(path) if left_out.isdisjoint((stage, "train" if stage in TRAINED else stage)) else None

    def lines_of_training(name: str) -> list[Record]:
        return _lines(folder / "super_adapter" / name) if "train" not in left_out else []

    run = Run(
        folder=folder,
        recipe=recipe,
        sparsity=_record(folder / "sparse" / SPARSITY),
        space=of("train", folder / "super_adapter" / SEARCH_SPACE),
        log=lines_of_training(TRAINING_LOG),
        result=of("search", folder / "search" / RESULT),
        sub_adapter=of("export", folder / "sub_adapter" / SUB_ADAPTER),
        merged=of("export", folder / "merged" / MERGED),
        package=of("export", folder / "package" / PACKAGE),
        bench=of("export", folder / BENCH),
        summary=(summary := of("evaluate", folder / EVALUATION)),
        figures=_figures(folder, summary),
        times=read_times(folder),
        step_times={line["step"]: line["seconds"] for line in lines_of_training(TRAINING_TIMES)},
    )
    if not run.models and not any(run.stages()):
        raise InputError(f"a report needs the folder of a run, and {folder} holds no stage of one; see shears run")
    return run


def _record(path: Path) -> Record | None:
    return read_object(path) if path.is_file() else None


def _figures(folder: Path, summary: Record | None) -> dict[str, Record]:
    files = {row["name"]: evaluation_file(folder, row["name"]) for row in (summary or {"models": []})["models"]}
    return {name: read_object(file) for name, file in files.items() if file.is_file()}


def _yaml(path: Path) -> Record:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except UNREADABLE as error:
        raise InputError(f"{path} must be a YAML file, got {first_line(error)}; write it again") from None
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must hold a JSON object a line, got {error}; train again") from None
