"""Comparison of arms on the same examples: accuracies, paired differences, notes."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shears.config.evaluate import BASELINES
from shears.errors import InputError
from shears.evaluation import statistics
from shears.evaluation.arms import Arms, Key, Measurement, example_of, numbered
from shears.evaluation.statistics import Bits
from shears.records.figures import CONTAMINATION, CUT

logger = logging.getLogger(__name__)


def compare_arms(arms: Arms, against: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the comparison of arms with `against`, by default the first, as plain data.

    `p` is McNemar's mid-p if both arms have one run, else that of the paired bootstrap; `p_holm` is
    corrected for the number of differences. Arms of several tasks have a comparison in `tasks` for
    each common task. InputError if the arms have different examples.
    """
    if len(arms) < 2:
        raise InputError(f"a comparison needs at least two arms, got {', '.join(arms) or 'none'}; name another run")
    base = against or next(iter(arms))
    if base not in arms:
        raise InputError(f"against must be one of the arms ({', '.join(arms)}), got {base!r}")
    comparisons = [
        {**({"task": task} if task else {}), **_comparison(part, base, seed)} for task, part in _by_task(arms).items()
    ]
    differences = [difference for comparison in comparisons for difference in comparison["differences"]]
    for difference, p in zip(differences, statistics.holm([each["p"] for each in differences]), strict=True):
        difference["p_holm"] = p
    return comparisons[0] if len(comparisons) == 1 else {"against": base, "tasks": comparisons}


def _by_task(arms: Arms) -> dict[str, Arms]:
    """Return the arms for each common task; arms of one task each are all under ""."""
    tasks = {name: dict.fromkeys(each.task for each in measurements) for name, measurements in arms.items()}
    if all(len(names) == 1 for names in tasks.values()):
        return {"": arms}
    first, *others = tasks.values()
    shared = [task for task in first if all(task in names for names in others)]
    if not shared:
        listing = "; ".join(f"{name} has {_listed(names)}" for name, names in tasks.items())
        raise InputError(f"arms must have a task in common: {listing}; evaluate them on the same tasks")
    if left_out := sorted({task for names in tasks.values() for task in names} - set(shared)):
        logger.warning("tasks that some arms lack are left out: %s", _listed(left_out))
    return {
        task: {name: [each for each in measurements if each.task == task] for name, measurements in arms.items()}
        for task in shared
    }


def _listed(tasks: Iterable[str]) -> str:
    return ", ".join(task or "a task without a name" for task in tasks)


def _comparison(arms: Arms, base: str, seed: int) -> dict[str, Any]:
    """Return the comparison of arms on one task."""
    runs = _aligned(arms)
    return {
        "n": len(runs[base][0]),
        "against": base,
        "arms": [_arm(name, runs[name], arms[name]) for name in arms],
        "differences": [_difference(name, runs[name], base, runs[base], seed) for name in arms if name != base],
        "notes": _notes(arms, base),
    }


def _aligned(arms: Arms) -> dict[str, list[Bits]]:
    """Return every run's bits in the first run's order; InputError if examples differ."""
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    keys = list(first.by_example())
    if not keys:
        raise InputError(f"{first.where} must hold records of examples, got none")
    aligned: dict[str, list[Bits]] = defaultdict(list)
    for name, measurements in arms.items():
        for measurement in measurements:
            right = measurement.by_example()
            if right.keys() != set(keys):
                raise InputError(
                    f"arms must be on the same examples: {first.where} has {len(keys)}, {measurement.where} has "
                    f"{len(right)}, {len(right.keys() & set(keys))} are in both; evaluate them on the same data"
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


def _difference(name: str, runs: Sequence[Bits], base: str, others: Sequence[Bits], seed: int) -> dict[str, Any]:
    value, low, high = statistics.paired_difference(runs, others)
    resampled = statistics.bootstrap_difference(runs, others, seed)
    difference: dict[str, Any] = {
        "name": name,
        "against": base,
        "value": value,
        "ci95": [low, high],
        "bootstrap_ci95": [resampled.low, resampled.high],
        "bootstrap_p": resampled.p,
    }
    if len(runs) > 1 or len(others) > 1:
        return {**difference, "test": "paired bootstrap", "p": resampled.p}
    test = statistics.mcnemar(runs[0], others[0])
    counts = {"won": test.won, "lost": test.lost, "p": test.p_mid, "p_exact": test.p_exact}
    return {**difference, "test": "McNemar, mid-p", **counts}


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


def paired(ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the difference of two accuracies over all examples, with its counts.

    `won` and `lost` count the examples that only the first and only the second answers rightly.
    None for records of other examples, or without right and wrong answers.
    """
    left, right = (_bits(records) for records in (ones, others))
    if not left or left.keys() != right.keys():
        return None
    bits = [[each[key] for key in left] for each in (left, right)]
    value, low, high = statistics.paired_difference(bits[:1], bits[1:])
    test = statistics.mcnemar(*bits)
    return {"n": len(left), "value": value, "ci95": [low, high], "won": test.won, "lost": test.lost, "p": test.p_mid}


def _bits(records: Sequence[Mapping[str, Any]]) -> dict[Key, bool]:
    """Return whether each example is right, by task and question; empty without answers."""
    if not all(isinstance(record.get("correct"), bool) for record in records):
        return {}
    keys = numbered(f"{record.get('task', '')} {example_of(record)}" for record in records)
    return {key: record["correct"] for key, record in zip(keys, records, strict=True)}


def _notes(arms: Arms, base: str) -> list[str]:
    """Return sentences on what else differs between the arms, as far as the records tell."""
    notes = [*_rule_notes(arms, base), *_answer_notes(arms, base)]
    readings = dict.fromkeys(
        name for runs in arms.values() for name in runs[0].records[0] if name.startswith("correct_")
    )
    for name in readings:
        notes.append(f"Accuracy {name.removeprefix('correct_').replace('_', ' ')}: {_accuracies(arms, name)}.")
    notes += _cut_notes(arms) + _contamination_notes(arms)
    prompts = arms[base][0].column("prompt")
    others = [arm for arm, runs in arms.items() if any(each.column("prompt") != prompts for each in runs)]
    if others:
        notes.append(f"Asked in other prompts than {base}: {', '.join(others)}. This changes the figures too.")
    return notes


def _rule_notes(arms: Arms, base: str) -> list[str]:
    rule = arms[base][0].rule
    others = {arm: {each.rule for each in runs if each.rule != rule} for arm, runs in arms.items()}
    listing = ", ".join(f"{arm} ({', '.join(sorted(rules))})" for arm, rules in others.items() if any(rules))
    if not rule or not listing:
        return []
    return [f"Judged by another rule than {base} ({rule}): {listing}. This changes the figures too."]


def _answer_notes(arms: Arms, base: str) -> list[str]:
    first = arms[base][0]
    answers = first.column("answer")
    columns = [(arm, each.column("answer")) for arm, runs in arms.items() for each in runs if each.rule == first.rule]
    counts = {arm: sum(column[key] != answers[key] for key in answers) for arm, column in columns}
    return [
        f"{count:,} of the {len(answers):,} questions have another right answer in {arm} than in {base}."
        for arm, count in counts.items()
        if count
    ]


def _cut_notes(arms: Arms) -> list[str]:
    """Return how many answers of each arm the longest length cut, over all of its runs."""
    flags = {arm: [flag for each in runs for flag in each.column(CUT).values()] for arm, runs in arms.items()}
    known = {arm: values for arm, values in flags.items() if all(isinstance(flag, bool) for flag in values)}
    counts = ", ".join(f"{arm} {sum(values):,} of {len(values):,}" for arm, values in known.items())
    return [f"Answers cut at the longest length: {counts}."] if counts else []


def _contamination_notes(arms: Arms) -> list[str]:
    seen = {
        arm: {key for each in runs for key, flag in each.column(CONTAMINATION).items() if flag}
        for arm, runs in arms.items()
    }
    keys = list(next(iter(arms.values()))[0].column("id"))
    others = [key for key in keys if not any(key in own for own in seen.values())]
    if len(others) == len(keys):
        return []
    counts = ", ".join(f"{len(own):,} in that of {arm}" for arm, own in seen.items() if own)
    note = f"Of the {len(keys):,} questions, some are in training data: {counts}"
    if not others:
        return [f"{note}; no question is unseen."]
    return [f"{note}. Accuracy on the other {len(others):,}: {_accuracies(arms, 'correct', others)}."]


def _accuracies(arms: Arms, name: str, keys: Sequence[Key] | None = None) -> str:
    """Return each arm's share of True in a field of its records; arms without it are left out."""
    accuracies: Mapping[str, float | None] = {arm: _accuracy(runs, name, keys) for arm, runs in arms.items()}
    return ", ".join(f"{arm} {value:.1%}" for arm, value in accuracies.items() if value is not None)


def _accuracy(runs: Sequence[Measurement], name: str, keys: Sequence[Key] | None) -> float | None:
    columns = [each.column(name) for each in runs]
    rows = [[column[key] for key in keys or columns[0]] for column in columns]
    complete = all(isinstance(value, bool) for row in rows for value in row)
    return statistics.pooled_accuracy(rows).value if complete else None
