"""Whether two models differ on the same examples: the paired difference, and McNemar's test."""

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from shears.evaluation.statistics import mcnemar, paired_difference
from shears.report.html import element, table
from shears.report.records import Record
from shears.report.words import GAP

Pair = tuple[str, Record, Record]  # a name, and the measurements of two models, the better known one second


def within(figures: Mapping[str, Record]) -> list[Pair]:
    """Return the last model of a run against every other one."""
    *others, last = figures
    return [(f"{last} against {other}", figures[last], figures[other]) for other in others]


def across(names: tuple[str, str], one: Mapping[str, Record], other: Mapping[str, Record]) -> list[Pair]:
    """Return every model that two runs have, of the first against the second."""
    return [(f"{name}: {names[0]} against {names[1]}", one[name], other[name]) for name in one if name in other]


def comparable(each: Sequence[Record]) -> bool:
    """Say whether measurements are of right and wrong on the same examples, in the same order."""
    records = [figure.get("records", []) for figure in each]
    keys = [[(record.get("index"), record.get("prompt")) for record in of] for of in records]
    return bool(keys and keys[0]) and all(key == keys[0] for key in keys) and all(
        "correct" in record for of in records for record in of)  # fmt: skip


def bits(figure: Record) -> list[bool]:
    """Return which examples a model answers rightly."""
    return [bool(record["correct"]) for record in figure["records"]]


def pairs_table(pairs: Iterable[Pair]) -> Markup | None:
    """Return the differences in points with their 95 % intervals and p values; None where nothing can be paired."""
    rows = [(name, *_tested(bits(one), bits(other))) for name, one, other in pairs if comparable([one, other])]
    head = ("models", "difference, points", "95 % interval", "only the first right", "only the second", "p (McNemar)")
    tested = table("Paired differences on the same examples", head, rows)
    return element("div", tested, class_="wide") if rows else None


def _tested(one: list[bool], other: list[bool]) -> tuple[str, str, int, int, str]:
    gap, test = paired_difference([one], [other]), mcnemar(one, other)
    edges = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}".replace(" ", GAP)
    p = "below 0.0001" if test.p_mid < 1e-4 else f"{test.p_mid:.2g}"
    return f"{100 * gap.value:+.1f}", edges, test.won, test.lost, p
