"""What a search knows of its configurations: measured on all examples, or estimated where a race ended early."""

from shears.report.records import Record
from shears.searching.strategies.base import EXAMPLES, is_partial


def measured(result: Record) -> dict[int, Record]:
    """Return the evaluations that have both objectives measured on all examples, by number from 1."""
    return {number: entry for number, entry in known(result).items() if not is_partial(entry["metrics"])}


def known(result: Record) -> dict[int, Record]:
    """Return the evaluations that have both objectives, estimates of a race among them, by number from 1.

    What breaks a bound on a size has not.
    """
    names = objectives_of(result)
    numbered = enumerate(result["evaluations"], start=1)
    return {number: entry for number, entry in numbered if all(name in entry["metrics"] for name in names)}


def objectives_of(result: Record) -> tuple[str, str]:
    """Return the two objectives that are drawn; results of earlier versions do not name them."""
    named = list(result.get("objectives") or result["chosen"]["metrics"])
    return named[0], named[1] if len(named) > 1 else named[0]


def raced_on(entry: Record) -> str | None:
    """Return how much of the examples a race estimated a configuration from, in words; None where it was measured."""
    num = entry["metrics"].get(EXAMPLES)
    return None if num is None else f"raced, {num:,} example{'s' * (num != 1)}"
