"""Runs on the same examples, aligned and compared: accuracies with intervals, paired differences with p values.

An arm is a name and one or more measurements (seeds) of it; an example is known by its question, whatever its place in
the file and the prompt around it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shears.data.questions import question_id
from shears.errors import InputError
from shears.evaluation.records import Record
from shears.evaluation.statistics import (
    Bits,
    bootstrap_difference,
    holm,
    mcnemar,
    paired_difference,
    pooled_accuracy,
    seed_spread,
)

Key = tuple[str, int]


@dataclass(frozen=True)
class Measurement:
    """What one evaluation gave, and where it was read from."""

    source: str
    records: Sequence[Record]

    def by_example(self) -> dict[Key, bool]:
        """Return whether each example is right; questions that come several times are told apart by their order."""
        seen: Counter[str] = Counter()
        right: dict[Key, bool] = {}
        for record in self.records:
            if not isinstance(record, dict) or not isinstance(record.get("correct"), bool):
                raise InputError(f"{self.source} must hold records that are right or wrong; a perplexity has none")
            name = str(record.get("id") or question_id(str(record.get("prompt", ""))))
            right[name, seen[name]] = record["correct"]
            seen[name] += 1
        return right

    def asked(self) -> list[tuple[Any, ...]] | None:
        """Return index, prompt and answer of each record in order; None where one has no prompt."""
        asked = [tuple(record.get(name) for name in ("index", "prompt", "answer")) for record in self.records]
        return asked if all(prompt for _, prompt, _ in asked) else None


Arms = dict[str, list[Measurement]]


def compare_arms(arms: Arms, against: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the comparison of several arms as plain data; every other arm is held against one, by default the first.

    p is the mid-p of McNemar's test where both arms have one run, that of the paired bootstrap where seeds are pooled;
    `p_holm` is corrected for the number of differences. InputError where the arms are not on the same examples.
    """
    if len(arms) < 2:
        raise InputError(f"a comparison needs at least two arms, got {', '.join(arms) or 'none'}; name another run")
    base = against or next(iter(arms))
    if base not in arms:
        raise InputError(f"against must be one of the arms ({', '.join(arms)}), got {base!r}")
    runs = _aligned(arms)
    found = [_difference(name, runs[name], base, runs[base], seed) for name in arms if name != base]
    for each, p in zip(found, holm([difference["p"] for difference in found]), strict=True):
        each["p_holm"] = p
    return {
        "n": len(runs[base][0]),
        "against": base,
        "arms": [_arm(name, runs[name], arms[name]) for name in arms],
        "differences": found,
    }


def _aligned(arms: Arms) -> dict[str, list[Bits]]:
    """Return every run's bits in the order of the first run's examples; InputError with counts where they differ.

    Examples are the same by their ids, or by index, prompt and answer where an earlier version gave other ids.
    """
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    keys = list(first.by_example())
    if not keys:
        raise InputError(f"{first.source} must hold records of examples, it holds none")
    aligned: dict[str, list[Bits]] = defaultdict(list)
    for name, measurements in arms.items():
        for measurement in measurements:
            right = measurement.by_example()
            if right.keys() != set(keys) and measurement.asked() == first.asked() is not None:
                right = dict(zip(keys, right.values(), strict=True))
            if right.keys() != set(keys):
                raise InputError(
                    f"arms must be on the same examples: {first.source} has {len(keys)}, {measurement.source} has "
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
