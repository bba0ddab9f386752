"""Runs on the same examples, aligned and compared: accuracies with intervals, paired differences with p values.

An arm is a name and one or more measurements (seeds) of it, of one task or several.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shears.errors import InputError
from shears.evaluation.arms import Arms, Key, Measurement, with_ids_of_first
from shears.evaluation.statistics import (
    Bits,
    bootstrap_difference,
    holm,
    mcnemar,
    paired_difference,
    pooled_accuracy,
    seed_spread,
)
from shears.records.measures import CONTAMINATION

logger = logging.getLogger(__name__)


def compare_arms(arms: Arms, against: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the comparison of several arms as plain data; every other arm is held against one, by default the first.

    p is the mid-p of McNemar's test where both arms have one run, that of the paired bootstrap where seeds are pooled;
    `p_holm` is corrected for the number of differences. Where arms have several tasks, `tasks` holds a comparison of
    each that all of them have, and p_holm counts the differences of all. InputError where the arms are not on the same
    examples.
    """
    if len(arms) < 2:
        raise InputError(f"a comparison needs at least two arms, got {', '.join(arms) or 'none'}; name another run")
    base = against or next(iter(arms))
    if base not in arms:
        raise InputError(f"against must be one of the arms ({', '.join(arms)}), got {base!r}")
    tasks = _by_task(arms)
    each = [{**({"task": task} if task else {}), **_comparison(part, base, seed)} for task, part in tasks.items()]
    found = [difference for comparison in each for difference in comparison["differences"]]
    for difference, p in zip(found, holm([difference["p"] for difference in found]), strict=True):
        difference["p_holm"] = p
    return each[0] if len(each) == 1 else {"against": base, "tasks": each}


def _by_task(arms: Arms) -> dict[str, Arms]:
    """Return the arms task by task; as they are where each has one task, whatever it is called."""
    tasks = {name: dict.fromkeys(each.task for each in measurements) for name, measurements in arms.items()}
    if all(len(found) == 1 for found in tasks.values()):
        return {"": arms}
    first, *others = tasks.values()
    shared = [task for task in first if all(task in found for found in others)]
    if not shared:
        told = "; ".join(f"{name} has {_listed(found)}" for name, found in tasks.items())
        raise InputError(f"arms must have a task in common: {told}; evaluate them on the same tasks")
    if left_out := sorted({task for found in tasks.values() for task in found} - set(shared)):
        logger.warning("not every arm has %s: left out", _listed(left_out))
    return {
        task: {name: [each for each in measurements if each.task == task] for name, measurements in arms.items()}
        for task in shared
    }


def _listed(tasks: Iterable[str]) -> str:
    return ", ".join(task or "a task without a name" for task in tasks)


def _comparison(arms: Arms, base: str, seed: int) -> dict[str, Any]:
    """Return the comparison of arms on one task."""
    arms = with_ids_of_first(arms)
    runs = _aligned(arms)
    return {
        "n": len(runs[base][0]),
        "against": base,
        "arms": [_arm(name, runs[name], arms[name]) for name in arms],
        "differences": [_difference(name, runs[name], base, runs[base], seed) for name in arms if name != base],
        "notes": remarks(arms, base),
    }


def _aligned(arms: Arms) -> dict[str, list[Bits]]:
    """Return every run's bits in the order of the first run's examples; InputError with counts where they differ."""
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    keys = list(first.by_example())
    if not keys:
        raise InputError(f"{first.where} must hold records of examples, it holds none")
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
    value, low, high = pooled_accuracy(runs)
    spread = seed_spread(runs)
    return {
        "name": name, "runs": len(runs), "value": value, "ci95": [low, high],
        "spread": None if math.isnan(spread) else spread, "sources": [each.source for each in measurements],
    }  # fmt: skip


def _difference(name: str, runs: Sequence[Bits], base: str, others: Sequence[Bits], seed: int) -> dict[str, Any]:
    value, low, high = paired_difference(runs, others)
    resampled = bootstrap_difference(runs, others, seed)
    difference: dict[str, Any] = {
        "name": name, "against": base, "value": value, "ci95": [low, high],
        "bootstrap_ci95": [resampled.low, resampled.high], "bootstrap_p": resampled.p,
    }  # fmt: skip
    if len(runs) > 1 or len(others) > 1:
        return {**difference, "test": "paired bootstrap", "p": resampled.p}
    test = mcnemar(runs[0], others[0])
    return {
        **difference, "test": "McNemar, mid-p", "won": test.won, "lost": test.lost, "p": test.p_mid,
        "p_exact": test.p_exact,
    }  # fmt: skip


def remarks(arms: Arms, base: str) -> list[str]:
    """Return it in sentences; nothing where the records say nothing. The arms are on the same examples."""
    return [*_rules(arms, base), *_readings(arms), *_seen(arms), *_prompts(arms, base)]


def _rules(arms: Arms, base: str) -> list[str]:
    """Tell of arms that were judged by another rule than the base's, or by other right answers."""
    first = arms[base][0]
    others = {arm: {each.rule for each in of if each.rule != first.rule} for arm, of in arms.items()}
    told = [f"{arm} ({', '.join(sorted(rules))})" for arm, rules in others.items() if any(rules)]
    words = f"Judged by another rule than {base} ({first.rule}): {', '.join(told)}. Figures differ by that too."
    return [*([words] if told and first.rule else []), *_answers(arms, base)]


def _answers(arms: Arms, base: str) -> list[str]:
    right, rule = arms[base][0].column("answer"), arms[base][0].rule
    columns = [(arm, each.column("answer")) for arm, of in arms.items() for each in of if each.rule == rule]
    counts = {arm: sum(column[key] != right[key] for key in right) for arm, column in columns}
    return [
        f"Of the {len(right):,} questions, {count:,} have another right answer in {arm} than in {base}."
        for arm, count in counts.items()
        if count
    ]


def _readings(arms: Arms) -> list[str]:
    names = dict.fromkeys(
        key for each in arms.values() for key in each[0].records[0] if key.startswith("correct_")
    )  # fmt: skip
    found = {name: {arm: _accuracy(each, name) for arm, each in arms.items()} for name in names}
    words = {name: name.removeprefix("correct_").replace("_", " ") for name in found}
    return [f"Accuracy {words[name]}: {_told(values)}." for name, values in found.items()]


def _seen(arms: Arms) -> list[str]:
    seen = {arm: {key for each in of for key, flag in each.column(CONTAMINATION).items() if flag}
            for arm, of in arms.items()}  # fmt: skip
    keys = list(next(iter(arms.values()))[0].column("id"))
    others = [key for key in keys if not any(key in of for of in seen.values())]
    if len(others) == len(keys):
        return []
    told = ", ".join(f"{len(of):,} in that of {arm}" for arm, of in seen.items() if of)
    words = f"Of the {len(keys):,} questions, some stand in training data: {told}"
    if not others:
        return [f"{words}; there are no others."]
    values = {arm: _accuracy(each, "correct", others) for arm, each in arms.items()}
    return [f"{words}. On the other {len(others):,} the accuracy is: {_told(values)}."]


def _prompts(arms: Arms, base: str) -> list[str]:
    asked = arms[base][0].column("prompt")
    moved = [arm for arm, of in arms.items() if any(each.column("prompt") != asked for each in of)]
    words = f"Asked in other prompts than {base}: {', '.join(moved)}. Figures differ by that too."
    return [words] if moved else []


def _accuracy(runs: Sequence[Measurement], name: str, keys: Sequence[Key] | None = None) -> float | None:
    """Return the share of True under a name over the examples, seeds pooled; None where a record lacks it."""
    columns = [each.column(name) for each in runs]
    rows = [[column[key] for key in keys or columns[0]] for column in columns]
    known = all(isinstance(value, bool) for row in rows for value in row)
    return pooled_accuracy(rows).value if known else None


def _told(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{arm} {value:.1%}" for arm, value in values.items() if value is not None)
