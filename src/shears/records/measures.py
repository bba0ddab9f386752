"""Figures of measurements: which metrics are shares, and the figures in their details. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

SHARES = ("acc", "exact_match")  # beginnings of metrics, such as lm-eval's acc_norm or `exact_match,strict-match`
CONTAMINATION = "seen_in_training"  # in records: is the question in the training data; in details: how many are


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share of the examples, which is shown in percent."""
    return metric.startswith(SHARES)


def other_readings(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the details with an interval (`NAME`, `NAME_low`, `NAME_high`) in the form of figures."""
    details = figures.get("details") or {}
    intervals = {
        name: (details[f"{name}_low"], details[f"{name}_high"]) for name in details if f"{name}_low" in details
    }
    return [
        {**figures, "metric": name.replace("_", " "), "value": details[name], "ci95": interval}
        for name, interval in intervals.items()
    ]


def seen_words(figures: Mapping[str, Any], of: str = "", percent: Callable[[float], str] = "{:.1%}".format) -> str:
    """Return a sentence with the number of test questions that are in the training data of `of`; empty without any."""
    details = figures.get("details") or {}
    if not (seen := int(details.get(CONTAMINATION, 0))):
        return ""
    words = f"{seen:,} of the {figures['n']:,} test questions stand in the training data{f' of {of}' if of else ''}"
    others = details.get("accuracy_unseen")
    if others is not None:
        return f"{words}; on the others {'its' if of else 'the'} accuracy is {percent(others)}."
    return f"{words}; there are no others." if seen >= figures["n"] else f"{words}."
