"""The records in a run's folder, read as they are; the record of a stage that did not run is None."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shears.config.evaluate import BASELINES
from shears.config.export import FORMAT_OF_RECORD, FORMATS
from shears.config.resolve import parse_yaml
from shears.errors import InputError, first_line
from shears.records import artifacts
from shears.records.artifacts import evaluation_file, read_object
from shears.records.timing import read_times

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The records of a run.

    `figures` holds the measurement of each model, with its examples; `times` when and where each
    stage was worked at; `step_times` the seconds of each training step. All three may be empty.
    """

    folder: Path
    recipe: Record
    sparsity: Record | None
    healed: Record | None
    space: Record | None
    log: Sequence[Record]
    result: Record | None
    exports: Mapping[str, Record]  # by the records' file names
    baselines: Mapping[str, Record]  # of those that were measured, by their names
    bench: Record | None
    summary: Record | None
    figures: Mapping[str, Record]
    times: Sequence[Record]
    step_times: Mapping[int, float]
    ranks: Record | None = None  # the super-adapter at all of its ranks

    @property
    def models(self) -> Sequence[Record]:
        """One row per model, the dense one first, with the details of its measurement."""
        rows: Sequence[Record] = self.summary["models"] if self.summary else ()
        return [{"details": self.figures.get(row["name"], {}).get("details", {}), **row} for row in rows]

    @property
    def merged(self) -> Record | None:
        """The record of the merged model."""
        return self.exports.get(artifacts.MERGED)

    @property
    def package(self) -> Record | None:
        """The record of the package."""
        return self.exports.get(artifacts.PACKAGE)

    @property
    def exported(self) -> Record | None:
        """The record of the run's export; of several, the one in the recipe's format."""
        form = FORMATS.get(str((self.recipe.get("export") or {}).get("format")), FORMATS["peft"])
        return self.exports.get(form.record) or next(iter(self.exports.values()), None)

    @property
    def only_run_trained(self) -> bool:
        """Whether the run trains its last model and its base was not trained before."""
        return self.space is not None and not (self.sparsity or {}).get(artifacts.TRAINED_BEFORE)

    @property
    def references(self) -> Sequence[Record]:
        """Rows that the last model is compared with: baselines, the dense model, then others."""
        names = [*BASELINES, *(row["name"] for row in self.models[:-1])]
        rows = {row["name"]: row for row in self.models[:-1]}
        return [rows[name] for name in dict.fromkeys(names) if name in rows]

    def times_of(self, stage: str) -> Sequence[Record]:
        """Return a record for each time that a stage was begun or resumed."""
        return [line for line in self.times if line["stage"] == stage]

    def stages(self) -> Iterator[tuple[str, Record]]:
        """Yield the name and record of each stage that has one."""
        named = {
            "sparsify": self.sparsity,
            "heal": self.healed,
            "train": self.space,
            "search": self.result,
            "export": self.exported,
        }
        yield from ((name, record) for name, record in (named | dict(self.baselines)).items() if record)


def read_run(folder: Path) -> Run:
    """Return the records of a run's folder; InputError if it is not one or a record cannot be read.

    A record is not read if the recipe's section is null: it is from before the recipe was changed.
    """
    needs = f"a report needs the folder of a run, got {folder}"
    if not folder.is_dir():
        raise InputError(f"{needs}, which is not a folder; make one with shears run")
    recipe = _yaml(folder / artifacts.RECIPE)
    omitted = {name for name in ("heal", "train", "search", "evaluate") if name in recipe and recipe[name] is None}
    if "train" in omitted:
        packs = (recipe.get("export") or {}).get("format") == "package"  # which needs no training
        omitted |= {"search"} if packs else {"search", "export"}

    def record(stage: str, path: Path) -> Record | None:
        return read_object(path) if stage not in omitted and path.is_file() else None

    def training_lines(name: str) -> list[Record]:
        return _lines(folder / "super_adapter" / name) if "train" not in omitted else []

    summary = record("evaluate", folder / artifacts.EVALUATION)
    measured = [row["name"] for row in summary["models"]] if summary is not None else []
    run = Run(
        folder=folder,
        recipe=recipe,
        sparsity=record("sparsify", folder / "sparse" / artifacts.SPARSITY),
        healed=record("heal", folder / "healed" / artifacts.HEALED),
        space=record("train", folder / "super_adapter" / artifacts.SEARCH_SPACE),
        log=training_lines(artifacts.TRAINING_LOG),
        result=record("search", folder / "search" / artifacts.RESULT),
        exports={
            name: content
            for name, form in FORMAT_OF_RECORD.items()
            if (content := record("export", folder / form.folder / name)) is not None
        },
        baselines=_records(
            {
                name: artifacts.baseline_folder(folder, name) / artifacts.SEARCH_SPACE
                for name in measured
                if name in BASELINES
            }
        ),
        bench=record("export", folder / artifacts.BENCH),
        summary=summary,
        figures=_records({name: evaluation_file(folder, name) for name in measured}),
        times=read_times(folder),
        ranks=record("evaluate", evaluation_file(folder, artifacts.ALL_RANKS)),
        step_times={line["step"]: line["seconds"] for line in training_lines(artifacts.TRAINING_TIMES)},
    )
    if not run.models and not any(run.stages()):
        raise InputError(f"{needs}, which has no records; make one with shears run")
    return run


def _records(files: Mapping[str, Path]) -> dict[str, Record]:
    """Return the records of the files that exist, by name."""
    return {name: read_object(file) for name, file in files.items() if file.is_file()}


def _yaml(path: Path) -> Record:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} must be a YAML file, got {first_line(error)}; write it again") from None
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must hold one JSON object per line, got {error}; train again") from None
