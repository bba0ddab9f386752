"""Comparison of arms on the same examples: accuracies, paired differences, notes.

An arm has a name and, for each seed, a measurement: what one evaluation gave on one task.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.config.evaluate_options import BASELINES
from shears.data.templates import question_id
from shears.errors import InputError, reading
from shears.evaluation import statistics
from shears.evaluation.statistics import Bits
from shears.records.artifacts import EVALUATION, evaluation_file, read_object
from shears.records.figures import CONTAMINATION

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
Key = tuple[str, int]
"""An example: its task and question, and how many equal ones come before it."""


def column_of(records: Iterable[Record], name: str) -> dict[Key, Any]:
    """Return one field of each example's record; None where a record lacks it."""
    counts: Counter[str] = Counter()
    found = {}
    for record in records:
        own = record.get("id") or question_id(str(record.get("prompt", "")))
        question = f"{record.get('task', '')} {own}"
        found[question, counts[question]] = record.get(name)
        counts[question] += 1
    return found


@dataclass(frozen=True)
class Measurement:
    """The records of one evaluation on one task, and the file they were read from."""

    source: str
    records: Sequence[Record]
    task: str = ""
    rule: str = ""


Arms = dict[str, list[Measurement]]


def read_arms(runs: Sequence[str]) -> Arms:
    """Return the arms that arguments such as `runs/a` and `NLS=seed0.json,seed1.json` name.

    Sources of one name are seeds of one arm; a source without a name is called by its path. A run
    folder gives an arm for each of its models, named by them if it is the only source.
    """
    arms: Arms = defaultdict(list)
    for text in runs:
        name, paths = _split_name(text)
        for path in paths:
            for model, own in _measurements(_figures_file(path)):
                label = name or path
                arm = label if not model else model if len(runs) == 1 and not name else f"{label}: {model}"
                if any((each.source, each.task) == (own.source, own.task) for each in arms[arm]):
                    raise InputError(f"a file of an arm must be given once, {arm} has {path} twice")
                arms[arm].append(own)
    return dict(arms)


def files_of(runs: Sequence[str], arms: Arms) -> set[Path]:
    """Return every file that the arguments name or the arms were read from, links resolved."""
    named = [_figures_file(path) for text in runs for path in _split_name(text)[1]]
    read = [Path(each.source) for measurements in arms.values() for each in measurements]
    return {path.resolve() for path in [*named, *read]}


def _split_name(text: str) -> tuple[str, list[str]]:
    name, _, paths = text.partition("=")
    return ("", [text]) if not paths or Path(text).exists() else (name, paths.split(","))


def _figures_file(path: str) -> Path:
    return Path(path) / EVALUATION if Path(path).is_dir() else Path(path)


def _measurements(file: Path) -> Iterator[tuple[str, Measurement]]:
    content = read_object(file)
    with reading(file):
        names = [row["name"] for row in content["models"]] if "models" in content else [""]
    for name in names:
        own = evaluation_file(file.parent, name) if name else file
        figures = read_object(own)
        with reading(own):
            records = figures["records"]
            rule = str(figures["task"])
            tasks = dict.fromkeys(str(record.get("task", "")) for record in records)
        for task in tasks:
            yield name, Measurement(str(own), [each for each in records if each.get("task", "") == task], task, rule)


def compare_arms(arms: Arms, against: str | None = None) -> dict[str, Any]:
    """Return the comparison of arms with `against`, by default the first, as plain data.

    `p` is McNemar's mid-p if both arms have one run, else that of the interval's variance; `p_holm`
    is corrected for the number of differences. Arms of several tasks have a comparison in `tasks`
    for each common task. InputError if the arms have different examples.
    """
    if len(arms) < 2:
        raise InputError(f"a comparison needs at least two arms, got {', '.join(arms) or 'none'}; name another run")
    base = against or next(iter(arms))
    if base not in arms:
        raise InputError(f"against must be one of the arms ({', '.join(arms)}), got {base!r}")
    tasks = {name: dict.fromkeys(each.task for each in runs) for name, runs in arms.items()}
    shared = [task for task in tasks[base] if all(task in names for names in tasks.values())]
    if not shared:
        raise InputError(f"arms must have a task in common, got {tasks}; evaluate the same tasks")
    if left_out := sorted({task for names in tasks.values() for task in names} - set(shared)):
        logger.warning("tasks that some arms lack are left out: %s", ", ".join(left_out))
    comparisons = []
    for task in shared:
        part = {name: [each for each in runs if each.task == task] for name, runs in arms.items()}
        comparisons.append({**({"task": task} if task else {}), **_comparison(part, base)})
    differences = [each for comparison in comparisons for each in comparison["differences"]]
    for difference, p in zip(differences, statistics.holm([each["p"] for each in differences]), strict=True):
        difference["p_holm"] = p
    return comparisons[0] if len(comparisons) == 1 else {"against": base, "tasks": comparisons}


def _comparison(arms: Arms, base: str) -> dict[str, Any]:
    runs = _aligned(arms)
    return {
        "n": len(runs[base][0]),
        "against": base,
        "arms": [_arm(name, runs[name], arms[name]) for name in arms],
        "differences": [_difference(name, runs[name], base, runs[base]) for name in arms if name != base],
        "notes": _notes(arms, base),
    }


def _aligned(arms: Arms) -> dict[str, list[Bits]]:
    """Return every run's bits in the first run's order; InputError if examples differ."""
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    keys = list(column_of(first.records, "correct"))
    aligned: dict[str, list[Bits]] = defaultdict(list)
    for name, measurements in arms.items():
        for measurement in measurements:
            right = column_of(measurement.records, "correct")
            if not right or not all(isinstance(bit, bool) for bit in right.values()):
                raise InputError(f"{measurement.source} must have records of right and wrong answers, not a perplexity")
            if right.keys() != set(keys):
                raise InputError(
                    f"arms must be measured on the same examples: {first.source} has {len(keys)}, {measurement.source} "
                    f"has {len(right)}, and {len(right.keys() & set(keys))} are in both; evaluate them on the same data"
                )
            aligned[name].append([right[key] for key in keys])
    return aligned


def _arm(name: str, runs: Sequence[Bits], measurements: Sequence[Measurement]) -> dict[str, Any]:
    value, low, high = statistics.pooled_accuracy(runs)
    spread = statistics.seed_spread(runs)
    return {
        "name": name,
        "runs": len(runs),
        "value": value,
        "ci95": [low, high],
        "spread": None if math.isnan(spread) else spread,
        "sources": [each.source for each in measurements],
    }


def _difference(name: str, runs: Sequence[Bits], base: str, others: Sequence[Bits]) -> dict[str, Any]:
    value, low, high = statistics.paired_difference(runs, others)
    gap: dict[str, Any] = {"name": name, "against": base, "value": value, "ci95": [low, high]}
    if len(runs) > 1 or len(others) > 1:
        return {**gap, "test": "normal, over examples and seeds", "p": statistics.difference_p(runs, others)}
    test = statistics.mcnemar(runs[0], others[0])
    return {**gap, "test": "McNemar, mid-p", "won": test.won, "lost": test.lost, "p": test.p_mid}


def lead(
    rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]], *, only_run_trained: bool
) -> dict[str, Any] | None:
    """Return a run's difference: its last model minus plain LoRA, or minus its dense model.

    `rows` are the run's models, the dense one first, and `figures` their measurements. A dense
    model is `untrained` if `only_run_trained`: nobody trained its base before. None for fewer than
    two models.
    """
    if len(rows) < 2:
        return None
    by_name = {row["name"]: row for row in rows}
    last = rows[-1]["name"]
    other = next((name for name in BASELINES if name in by_name), rows[0]["name"])
    pair = [figures.get(name, {}).get("records", []) for name in (last, other)]
    return {
        "name": last,
        "against": other,
        "untrained": other not in BASELINES and only_run_trained,
        "metric": by_name[last]["metric"],
        "values": [by_name[name]["value"] for name in (last, other)],
        "difference": paired(*pair),
    }


def paired(ones: Sequence[Record], others: Sequence[Record]) -> dict[str, Any] | None:
    """Return the difference of two accuracies over all examples, with its counts.

    None for records of other examples, or without right and wrong answers.
    """
    left, right = (column_of(records, "correct") for records in (ones, others))
    is_judged = all(isinstance(bit, bool) for bit in [*left.values(), *right.values()])
    if not left or left.keys() != right.keys() or not is_judged:
        return None
    bits = [[each[key] for key in left] for each in (left, right)]
    value, low, high = statistics.paired_difference(bits[:1], bits[1:])
    test = statistics.mcnemar(*bits)
    return {"n": len(left), "value": value, "ci95": [low, high], "won": test.won, "lost": test.lost, "p": test.p_mid}


def _notes(arms: Arms, base: str) -> list[str]:
    first = arms[base][0]
    rules = {arm: runs[0].rule for arm, runs in arms.items() if runs[0].rule != first.rule}
    notes = []
    if rules:
        listing = ", ".join(f"{arm} ({rule})" for arm, rule in rules.items())
        told = f"These arms were judged by another rule than {base} ({first.rule}): {listing}."
        notes.append(f"{told} This changes the accuracy too.")
    for name, what in {"prompt": "got other prompts", "answer": "were compared with other right answers"}.items():
        column = column_of(first.records, name)
        others = [arm for arm, runs in arms.items() if arm not in rules and column_of(runs[0].records, name) != column]
        if others:
            notes.append(f"These arms {what} than {base}: {', '.join(others)}. This changes the accuracy too.")
    seen = {
        key
        for runs in arms.values()
        for each in runs
        for key, flag in column_of(each.records, CONTAMINATION).items()
        if flag
    }
    if seen:
        notes.append(
            f"{len(seen):,} of the {len(first.records):,} questions also occur in the training data of an arm."
        )
    return notes
