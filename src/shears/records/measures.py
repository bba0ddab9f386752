"""Figures of measurements: which of them are shares, and what their details add to the official one. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

SHARES = ("acc", "exact_match")  # ours, and lm-eval's acc_norm or `exact_match,strict-match`, begin so
CONTAMINATION = "seen_in_training"  # of a record whether, of details how many test questions stand in training data


def is_share(metric: str) -> bool:
    """Say whether a metric is a share of examples, which people read in percent."""
    return metric.startswith(SHARES)


def other_readings(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the details that have an interval of their own (`NAME`, `NAME_low`, `NAME_high`) as figures."""
    details = figures.get("details") or {}
    return [
        {
            **figures,
            "metric": name.replace("_", " "),
            "value": value,
            "ci95": (details[f"{name}_low"], details[f"{name}_high"]),
        }
        for name, value in details.items()
        if f"{name}_low" in details
    ]


def seen_words(figures: Mapping[str, Any], of: str = "", percent: Callable[[float], str] = "{:.1%}".format) -> str:
    """Return in a sentence how many test questions stand in the training data of `of`; nothing where none does."""
    details = figures.get("details") or {}
    if not (seen := int(details.get(CONTAMINATION, 0))):
        return ""
    words = f"{seen:,} of the {figures['n']:,} test questions stand in the training data{f' of {of}' if of else ''}"
    others = details.get("accuracy_unseen")
    if others is not None:
        return f"{words}; on the others {'its' if of else 'the'} accuracy is {percent(others)}."
    return f"{words}; there are no others." if seen >= figures["n"] else f"{words}."
