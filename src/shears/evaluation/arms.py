"""Which runs a comparison is of: run folders and figures files, named, pooled and told apart by model and task."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shears.data.questions import question_id
from shears.errors import InputError
from shears.evaluation.records import Record
from shears.records.artifacts import EVALUATION, evaluation_file, read_json

Key = tuple[str, int]


def example_of(record: Mapping[str, Any]) -> str:
    """Return what an example is known by: the id of its question, in older records that of its prompt."""
    return str(record.get("id") or question_id(str(record.get("prompt", ""))))


def numbered(names: Iterable[str]) -> list[Key]:
    """Return names with how often each came before: questions that come several times are told apart by their order."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


@dataclass(frozen=True)
class Measurement:
    """What one evaluation gave on one task, and where it was read from; only lm-eval's tasks have a name here.

    `rule` is how it was asked and judged, in words: the task's name and, where it has several, its protocol.
    """

    source: str
    records: Sequence[Record]
    task: str = ""
    rule: str = ""

    @property
    def where(self) -> str:
        """Return the source, and the task where it has a name."""
        return f"{self.source} ({self.task})" if self.task else self.source

    def by_example(self) -> dict[Key, bool]:
        """Return whether each example is right; InputError for records that are neither right nor wrong."""
        if not all(isinstance(record, dict) and isinstance(record.get("correct"), bool) for record in self.records):
            raise InputError(f"{self.source} must hold records that are right or wrong; a perplexity has none")
        return self.column("correct")

    def column(self, name: str) -> dict[Key, Any]:
        """Return what each example's record has under a name, None where it has not."""
        keys = numbered(map(example_of, self.records))
        return {key: record.get(name) for key, record in zip(keys, self.records, strict=True)}

    def asked(self) -> list[tuple[Any, ...]] | None:
        """Return index, prompt and answer of each record in order; None where one has no prompt."""
        if not all(isinstance(record, dict) and record.get("prompt") for record in self.records):
            return None
        return [tuple(record.get(name) for name in ("index", "prompt", "answer")) for record in self.records]


Arms = dict[str, list[Measurement]]


def with_ids_of_first(arms: Arms) -> Arms:
    """Return arms whose questions are named as in the first: an earlier version gave some questions other ids.

    They are the same where index, prompt and answer are; arms on other examples stay as they are.
    """
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    if (asked := first.asked()) is None:
        return arms
    names = list(map(example_of, first.records))
    return {arm: [_renamed(each, names, asked) for each in measurements] for arm, measurements in arms.items()}


def _renamed(measurement: Measurement, names: Sequence[str], asked: object) -> Measurement:
    if measurement.asked() != asked:
        return measurement
    records = [{**record, "id": name} for record, name in zip(measurement.records, names, strict=True)]
    return replace(measurement, records=records)


def read_arms(runs: Sequence[str]) -> Arms:
    """Return the arms that words such as `runs/a`, `figures.json` and `NLS=seed0.json,seed1.json` name.

    Sources behind one name are seeds of one arm; one without a name is called after its file or folder, and as many
    folders above it as tell it from the others. A run's folder (or its evaluation.json) has an arm for each model
    measured in it. Several lm-eval tasks are measurements of one arm, each with its task; of a figures file that stands
    alone they are the arms. InputError for what is none of these.
    """
    arms: Arms = defaultdict(list)
    named = [_named(text) for text in runs]
    labels = _labels([path for name, paths in named if not name for path in paths], {name for name, _ in named})
    seen = set[tuple[str, Path, str]]()
    for name, path in ((name, path) for name, paths in named for path in paths):
        file = _figures(Path(path))
        found = list(_measurements(file))
        for model, measurement in found:
            part = model or (measurement.task if len(runs) == 1 and len(found) > 1 else "")
            arm = _arm(name or labels[path], part, alone=len(runs) == 1 and not name)
            if (arm, file.resolve(), measurement.task) in seen:
                raise InputError(f"every source of an arm must be given once, {arm} has one twice: {path}")
            seen.add((arm, file.resolve(), measurement.task))
            arms[arm].append(measurement)
    return dict(arms)


def files_of(runs: Sequence[str], arms: Arms) -> set[Path]:
    """Return every file that these words name or that was read for these arms, links followed."""
    named = [_figures(Path(path)) for text in runs for path in _named(text)[1]]
    read = [Path(measurement.source) for measurements in arms.values() for measurement in measurements]
    return {path.resolve() for path in [*named, *read]}


def _named(text: str) -> tuple[str, list[str]]:
    """Return an arm's name and its sources: behind the last =, or an earlier one where that finds all of them."""
    if "=" not in text or Path(text).exists():
        return "", [text]
    places = [place for place, character in enumerate(text) if character == "="]
    splits = [(text[:place], [path for path in text[place + 1 :].split(",") if path]) for place in reversed(places)]
    name, found = next((split for split in splits if split[1] and _are_there(split[1])), splits[0])
    if not found:
        raise InputError(f"an arm must have a file or folder behind its name, got {text!r}")
    return name, found


def _are_there(paths: Sequence[str]) -> bool:
    return all(Path(path).exists() for path in paths)


def _labels(paths: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Return what sources without a name are called; `names` are those of others."""
    wholes = {path: Path(os.path.abspath(path)) for path in paths}
    return {
        path: _label(path, _words(whole), [_words(other) for other in wholes.values() if other != whole], names)
        for path, whole in wholes.items()
    }


def _words(path: Path) -> list[str]:
    return [*path.parent.parts, path.name if path.is_dir() else path.stem]


def _label(path: str, own: list[str], others: Sequence[list[str]], names: Collection[str]) -> str:
    """Return the end of a path, as short as no other path ends and nothing else is called."""
    for length in range(1, len(own) + 1):
        label = "/".join(own[-length:])
        if label not in names and all(other[-length:] != own[-length:] for other in others):
            return label
    return path


def _arm(label: str, part: str, alone: bool) -> str:
    """Return what an arm is called: its source, and the model or task in it."""
    if not part:
        return label
    return part if alone else f"{label}: {part}"


def _figures(path: Path) -> Path:
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"a run to compare must be a folder with {EVALUATION} or a figures file, got {path}")
    return file


def _measurements(file: Path) -> Iterator[tuple[str, Measurement]]:
    """Yield the measurements of a source, task by task, with their models' names; a figures file has none."""
    content = read_json(file)
    if not isinstance(content, dict) or not ("models" in content or "records" in content):
        raise InputError(f"{file} must be {EVALUATION} of a run or what evaluate --output wrote; it is neither")
    if "models" in content:
        for name in _models(file, content["models"]):
            own = evaluation_file(file.parent, name)
            yield from ((name, each) for each in _by_task(own, read_json(own)))
        return
    yield from (("", each) for each in _by_task(file, content))


def _by_task(file: Path, content: Any) -> Iterator[Measurement]:
    found = _records(file, content)
    tasks = list(dict.fromkeys(str(record.get("task", "")) for record in found)) or [""]
    for task in tasks:
        records = [record for record in found if str(record.get("task", "")) == task]
        yield Measurement(str(file), records, task, _rule(content))


def _rule(content: Any) -> str:
    config = content.get("config")
    protocol = config.get("protocol") if isinstance(config, dict) else None
    return " by ".join(str(name) for name in (content.get("task"), protocol) if name)


def _models(file: Path, rows: Any) -> list[str]:
    """Return the names of the models that a run measured."""
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        raise InputError(f"the models of {file} must be a list of objects with a name, got {str(rows)[:40]}")
    return [row["name"] for row in rows]


def _records(file: Path, content: Any) -> list[Record]:
    found = content.get("records", []) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise InputError(f"the records of {file} must be a list of objects, got {str(found)[:40]}; evaluate again")
    return found
