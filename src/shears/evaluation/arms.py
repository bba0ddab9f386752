"""Which runs a comparison is of: run folders and figures files, named, pooled and told apart by model and task."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shears.artifacts import EVALUATION, evaluation_file, read_json
from shears.errors import InputError
from shears.evaluation.comparison import Arms, Measurement


def read_arms(runs: Sequence[str]) -> Arms:
    """Return the arms that words such as `runs/a`, `figures.json` and `NLS=seed0.json,seed1.json` name.

    Sources behind one name are seeds of one arm. A run's folder (or its evaluation.json) has an arm for each model
    measured in it; so has a figures file of several lm-eval tasks for each task. InputError for what is none of these.
    """
    arms: Arms = defaultdict(list)
    for text in runs:
        name, paths = _named(text)
        for path in paths:
            for part, measurement in _measurements(Path(path)):
                arms[_label(name, path, part, alone=len(runs) == 1)].append(measurement)
    for name, each in arms.items():
        if len({measurement.source for measurement in each}) < len(each):
            raise InputError(f"every source of an arm must be given once, {name} has one twice")
    return dict(arms)


def _named(text: str) -> tuple[str, list[str]]:
    name, equals, paths = text.rpartition("=")
    if equals and not Path(text).exists():
        return name, [path for path in paths.split(",") if path]
    return "", [text]


def _label(name: str, path: str, part: str, alone: bool) -> str:
    """Return what an arm is called: its name or the file's or folder's, and the model or task in it."""
    own = name or (Path(path).name if Path(path).is_dir() else Path(path).stem)
    if not part:
        return own
    return part if alone and not name else f"{own}: {part}"


def _measurements(path: Path) -> Iterator[tuple[str, Measurement]]:
    """Yield the parts of a source with their names; a file of one measurement is one part without a name."""
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"a run to compare must be a folder with {EVALUATION} or a figures file, got {path}")
    content = read_json(file)
    if not isinstance(content, dict) or not ("models" in content or "records" in content):
        raise InputError(f"{file} must be {EVALUATION} of a run or what evaluate --output wrote; it is neither")
    if "models" in content:
        for row in content["models"]:
            own = evaluation_file(file.parent, row["name"])
            yield row["name"], Measurement(str(own), _records(own))
        return
    tasks = list(dict.fromkeys(record.get("task", "") for record in content["records"])) or [""]
    for task in tasks:
        records = [record for record in content["records"] if record.get("task", "") == task]
        yield task if len(tasks) > 1 else "", Measurement(f"{file}{f' ({task})' if len(tasks) > 1 else ''}", records)


def _records(file: Path) -> list[Any]:
    content: dict[str, Any] = read_json(file)
    return list(content.get("records", []))
