"""The arms of a comparison, read from run folders and figures files.

An arm has a name and measurements: what one evaluation gave on one task.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.data.prompts import question_id
from shears.errors import InputError
from shears.evaluation.records import Record
from shears.records.artifacts import EVALUATION, evaluation_file, read_json

Key = tuple[str, int]
"""An example: the id of its question, and how many examples with the same id come before it."""


def example_of(record: Mapping[str, Any]) -> str:
    """Return the id of a record's question; made from the prompt for records that have none."""
    return str(record.get("id") or question_id(str(record.get("prompt", ""))))


def numbered(names: Iterable[str]) -> list[Key]:
    """Return each name with the number of equal names before it."""
    counts: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, counts[name]))
        counts[name] += 1
    return keys


@dataclass(frozen=True)
class Measurement:
    """The records of one evaluation on one task, and the file they were read from.

    `task` is empty except for lm-eval's; `rule` names the task and how answers were judged.
    """

    source: str
    records: Sequence[Record]
    task: str = ""
    rule: str = ""

    @property
    def where(self) -> str:
        """Return the source, with the task if it has a name."""
        return f"{self.source} ({self.task})" if self.task else self.source

    def by_example(self) -> dict[Key, bool]:
        """Return whether each example is right; InputError without right and wrong answers."""
        if not all(isinstance(record, dict) and isinstance(record.get("correct"), bool) for record in self.records):
            raise InputError(
                f"{self.source} must hold records of right and wrong answers; those of a perplexity cannot be compared"
            )
        return self.column("correct")

    def column(self, name: str) -> dict[Key, Any]:
        """Return one field of each example's record; None where a record lacks it."""
        keys = numbered(map(example_of, self.records))
        return {key: record.get(name) for key, record in zip(keys, self.records, strict=True)}


Arms = dict[str, list[Measurement]]


def read_arms(runs: Sequence[str]) -> Arms:
    """Return the arms that arguments such as `runs/a` and `NLS=seed0.json,seed1.json` name.

    Sources behind one name are seeds of one arm. A source without a name is called after the end of
    its path that no other source has. A run folder gives an arm for each of its models. Tasks of
    lm-eval are measurements of one arm, except in a single figures file, where each is an arm.
    InputError for a source that cannot be read or is given twice.
    """
    arms: Arms = defaultdict(list)
    named = [_split_name(text) for text in runs]
    labels = _labels([path for name, paths in named if not name for path in paths], {name for name, _ in named})
    seen = set[tuple[str, Path, str]]()
    for name, path in ((name, path) for name, paths in named for path in paths):
        file = _figures_file(Path(path))
        measurements = list(_measurements(file))
        for model, measurement in measurements:
            part = model or (measurement.task if len(runs) == 1 and len(measurements) > 1 else "")
            label = name or labels[path]
            alone = len(runs) == 1 and not name
            arm = f"{label}: {part}" if part and not alone else part or label
            if (arm, file.resolve(), measurement.task) in seen:
                raise InputError(f"every source of an arm must be given once, {arm} has one twice: {path}")
            seen.add((arm, file.resolve(), measurement.task))
            arms[arm].append(measurement)
    return dict(arms)


def files_of(runs: Sequence[str], arms: Arms) -> set[Path]:
    """Return every file that the arguments name or the arms were read from, links resolved."""
    named = [_figures_file(Path(path)) for text in runs for path in _split_name(text)[1]]
    read = [Path(measurement.source) for measurements in arms.values() for measurement in measurements]
    return {path.resolve() for path in [*named, *read]}


def _split_name(text: str) -> tuple[str, list[str]]:
    """Return the name of an arm and its sources.

    A path may hold a = too: the last = behind which every source exists separates them.
    """
    if "=" not in text or Path(text).exists():
        return "", [text]
    places = [place for place, character in enumerate(text) if character == "="]
    splits = [(text[:place], [path for path in text[place + 1 :].split(",") if path]) for place in reversed(places)]
    existing = [split for split in splits if split[1] and all(Path(path).exists() for path in split[1])]
    name, paths = (existing or splits)[0]
    if not paths:
        raise InputError(f"an arm must have a file or folder behind its name, got {text!r}")
    return name, paths


def _labels(paths: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Return, for each source, the shortest end of its path that is no other's and no name."""
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    parts = {path: [*own.parent.parts, own.name if own.is_dir() else own.stem] for path, own in absolute.items()}
    labels = {}
    for path, own in parts.items():
        others = [parts[other] for other in paths if absolute[other] != absolute[path]]
        labels[path] = path
        for length in range(1, len(own) + 1):
            label = "/".join(own[-length:])
            if label not in names and all(other[-length:] != own[-length:] for other in others):
                labels[path] = label
                break
    return labels


def _figures_file(path: Path) -> Path:
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"a run to compare must be a folder with {EVALUATION} or a figures file, got {path}")
    return file


def _measurements(file: Path) -> Iterator[tuple[str, Measurement]]:
    """Yield a source's measurements by task, each with its model's name, if it has one."""
    content = read_json(file)
    if not isinstance(content, dict) or not ("models" in content or "records" in content):
        raise InputError(f"{file} must be the {EVALUATION} of a run or a file that evaluate --output wrote")
    if "models" not in content:
        yield from (("", each) for each in _by_task(file, content))
        return
    models = content["models"]
    named = isinstance(models, list) and all(isinstance(row, dict) for row in models)
    if not named or not all(isinstance(row.get("name"), str) for row in models):
        raise InputError(f"the models of {file} must be a list of objects with a name, got {str(models)[:40]}")
    for name in [row["name"] for row in models]:
        own = evaluation_file(file.parent, name)
        yield from ((name, each) for each in _by_task(own, read_json(own)))


def _by_task(file: Path, content: Any) -> Iterator[Measurement]:
    records = content.get("records", []) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"the records of {file} must be a list of objects, got {str(records)[:40]}; evaluate again")
    config = content.get("config")
    protocol = config.get("protocol") if isinstance(config, dict) else None
    rule = " by ".join(str(name) for name in (content.get("task"), protocol) if name)
    tasks = list(dict.fromkeys(str(record.get("task", "")) for record in records)) or [""]
    for task in tasks:
        yield Measurement(str(file), [each for each in records if str(each.get("task", "")) == task], task, rule)
