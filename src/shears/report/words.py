"""Figures as people read them, unit and number kept on one line. Pure."""

from collections.abc import Mapping
from typing import Any

from shears.records.measures import is_share

COUNTS = frozenset({"parameters", "nonzeros", "macs", "tokens"})
GAP = "\N{NO-BREAK SPACE}"


def figure(metric: str, value: int | float) -> str:
    """Return a figure with what its metric asks for: percent, thousands and millions, or a few digits."""
    if is_share(metric):
        return percent(value)
    return count(value) if metric in COUNTS else digits(value)


def percent(share: float) -> str:
    """Return a share in percent, one place."""
    return f"{100 * share:.1f}{GAP}%"


def count(value: int | float) -> str:
    """Return a count in the unit it is best read in."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{GAP}{unit}"
    return f"{value:.4g}"


def digits(value: int | float) -> str:
    """Return a number with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def rate(value: int | float) -> str:
    """Return a speed or a time with three digits: more of them are noise."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def interval(row: Mapping[str, Any]) -> str:
    """Return the 95 % interval of a measurement."""
    low, high = row["ci95"]
    return f"{figure(row['metric'], low)} to {figure(row['metric'], high)}"


def size(num_bytes: int | float) -> str:
    """Return a number of bytes."""
    return f"{num_bytes / 1e9:,.2f}{GAP}GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f}{GAP}MB"


def times(ratio: float) -> str:
    """Return a ratio."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def duration(seconds: int | float) -> str:
    """Return a time in the two units it is best read in."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{GAP}s" if seconds < 10 else f"{whole}{GAP}s"
    minutes, rest = divmod(whole, 60)
    hours, over = divmod(minutes, 60)
    return f"{hours}{GAP}h {over}{GAP}min" if hours else f"{minutes}{GAP}min {rest}{GAP}s"
