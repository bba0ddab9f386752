"""Whether two models differ on the same examples: what keeps them apart, the paired difference, McNemar's test."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from shears.evaluation.measurements import Key, example_of, numbered
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


def apart(one: Record, other: Record) -> str | None:
    """Return what keeps two measurements from being compared, such as their protocols; None where nothing does.

    Examples are known by their questions, whatever the file, the order and the prompt; without them, the data count by
    their hash, and by their path where a hash is not recorded.
    """
    for name in ("task", "protocol"):
        if (found := _asked(one, name)) != (wanted := _asked(other, name)):
            return f"the {name}s are {found} and {wanted}"
    return _other_examples(one, other) if _is_judged(one) and _is_judged(other) else _other_data(one, other)


def unpaired(one: Record, other: Record) -> str | None:
    """Return why the answers of two measurements are not paired; None where they can be."""
    judged = _is_judged(one) and _is_judged(other)
    return apart(one, other) or (None if judged else "no single answers are kept that are right or wrong")


def aligned(figures: Sequence[Record]) -> list[list[Record]]:
    """Return the records of every measurement in the order of the first one's; none where they cannot be paired."""
    if not figures or any(unpaired(figures[0], each) for each in figures):
        return []
    return [[found[key] for key in _keyed(figures[0])] for found in map(_keyed, figures)]


def other_prompts(figures: Mapping[str, Record]) -> list[str]:
    """Return the models that were asked the first one's questions in other prompts."""
    records = aligned(list(figures.values()))
    prompts = {name: [record.get("prompt") for record in of] for name, of in zip(figures, records, strict=False)}
    return [name for name in prompts if prompts[name] != prompts[next(iter(prompts))]]


def bits(records: Sequence[Record]) -> list[bool]:
    """Return which examples a model answers rightly."""
    return [bool(record["correct"]) for record in records]


def pairs_table(pairs: Iterable[Pair]) -> Markup | None:
    """Return the differences in points with their 95 % intervals and p values; None where nothing can be paired."""
    found = [(name, aligned([one, other])) for name, one, other in pairs]
    rows = [(name, *_tested(*map(bits, records))) for name, records in found if records]
    head = ("models", "difference, points", "95 % interval", "only the first right", "only the second", "p (McNemar)")
    tested = table("Paired differences on the same examples", head, rows)
    return element("div", tested, class_="wide") if rows else None


def unpaired_words(pairs: Iterable[Pair]) -> str:
    """Return in sentences which pairs are not tested, and why."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, one, other in pairs:
        if reason := unpaired(one, other):
            reasons[reason].append(name)
    return "".join(f" Not paired ({'; '.join(names)}): {reason}." for reason, names in reasons.items())


def _asked(figure: Record, name: str) -> object:
    return figure.get("config", {}).get(name, figure.get(name))


def _is_judged(figure: Record) -> bool:
    records = figure.get("records", [])
    return bool(records) and all(isinstance(record.get("correct"), bool) for record in records)


def _keyed(figure: Record) -> dict[Key, Record]:
    records = figure["records"]
    names = (f"{record.get('task', '')} {example_of(record)}" for record in records)
    return dict(zip(numbered(names), records, strict=True))


def _other_examples(one: Record, other: Record) -> str | None:
    found, wanted = _keyed(one), _keyed(other)
    if found.keys() != wanted.keys():
        both = len(found.keys() & wanted.keys())
        named = all("id" in record for record in (*found.values(), *wanted.values()))
        known = "" if named else ", known by their prompts where records have no id"
        return f"the examples are {len(found):,} and {len(wanted):,}, {both:,} of them in both{known}"
    changed = sum(found[key].get("answer") != wanted[key].get("answer") for key in found)
    return f"{changed:,} of the {len(found):,} examples have another right answer" if changed else None


def _other_data(one: Record, other: Record) -> str | None:
    hashes, paths = ([_asked(each, name) for each in (one, other)] for name in ("data_sha256", "data"))
    by = hashes if all(hashes) else paths
    if by[0] != by[1]:
        return f"{paths[0]} had another content" if paths[0] == paths[1] else f"the data are {paths[0]} and {paths[1]}"
    for name in ("n", "sequence_length"):
        if (found := _asked(one, name)) != (wanted := _asked(other, name)):
            return f"{name} is {found} and {wanted}"
    return None


def _tested(one: list[bool], other: list[bool]) -> tuple[str, str, int, int, str]:
    gap, test = paired_difference([one], [other]), mcnemar(one, other)
    edges = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}".replace(" ", GAP)
    p = "below 0.0001" if test.p_mid < 1e-4 else f"{test.p_mid:.2g}"
    return f"{100 * gap.value:+.1f}", edges, test.won, test.lost, p
