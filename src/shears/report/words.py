"""Figures as text for people, with a number and its unit kept on one line. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from shears.records.figures import is_share

COUNTS = frozenset({"parameters", "nonzeros", "macs", "tokens"})
GAP = "\N{NO-BREAK SPACE}"


def figure(metric: str, value: int | float) -> str:
    """Return a figure: shares in percent, counts with a unit, others in four digits."""
    if is_share(metric):
        return percent(value)
    return count(value) if metric in COUNTS else digits(value)


def percent(share: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * share:.1f}{GAP}%"


def count(value: int | float) -> str:
    """Return a count in thousands (k), millions (M), billions (G) or trillions (T)."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{GAP}{unit}"
    return f"{value:.4g}"


def digits(value: int | float) -> str:
    """Return a number with four digits, or with all digits of a larger whole number."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def rate(value: int | float) -> str:
    """Return a speed or a time with three digits; further digits of it are noise."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def points(difference: float) -> str:
    """Return a difference of shares in points with its sign."""
    return f"{100 * difference:+.1f}"


def interval(row: Mapping[str, Any]) -> str:
    """Return the 95 % interval of a measurement, such as `25.0 % to 75.0 %`."""
    low, high = row["ci95"]
    return f"{figure(row['metric'], low)} to {figure(row['metric'], high)}"


def size(num_bytes: int | float) -> str:
    """Return a number of bytes in megabytes or gigabytes."""
    return f"{num_bytes / 1e9:,.2f}{GAP}GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f}{GAP}MB"


def times(ratio: float) -> str:
    """Return a ratio such as `1.61x`."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 thread` or `2 threads`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def rank_counts(ranks: Mapping[str, int]) -> str:
    """Return how many groups have which rank, such as `rank 6 in 2 groups, rank 4 in 1 group`."""
    counts = sorted(Counter(ranks.values()).items(), reverse=True)
    return ", ".join(f"rank {rank} in {plural(number, 'group')}" for rank, number in counts)


def duration(seconds: int | float) -> str:
    """Return a time in seconds, in minutes and seconds, or in hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{GAP}s" if seconds < 10 else f"{whole}{GAP}s"
    minutes, rest = divmod(whole, 60)
    hours, over = divmod(minutes, 60)
    return f"{hours}{GAP}h {over}{GAP}min" if hours else f"{minutes}{GAP}min {rest}{GAP}s"
