"""Which models of a run are right on which examples, and examples on which they differ."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from shears.report.html import element, table
from shears.report.pairs import aligned, bits
from shears.report.records import Record

SHOWN, LONGEST = 8, 1500  # examples, characters of a text
Pattern = tuple[bool, ...]  # which models are right


def agreement(figures: Mapping[str, Record]) -> Markup | None:
    """Return how often which models are right; None where they were not asked the same, or there is only one."""
    patterns = _patterns(figures)
    rows = ((count, *map(_verdict, pattern)) for pattern, count in Counter(patterns).most_common())
    return table("How often which models are right", ("examples", *figures), rows) if patterns else None


def differing(figures: Mapping[str, Record]) -> list[Markup]:
    """Return examples in turns of every pattern in which some models are right and some wrong."""
    each = aligned(list(figures.values()))
    return [_example(list(figures), [records[index] for records in each]) for index in _spread(_patterns(figures))]


def _patterns(figures: Mapping[str, Record]) -> list[Pattern]:
    if len(figures) < 2:
        return []
    return list(zip(*map(bits, aligned(list(figures.values()))), strict=True))


def _spread(patterns: Sequence[Pattern]) -> Iterator[int]:
    """Yield examples in turns, one of each pattern on which models differ."""
    waiting = {pattern: [index for index, other in enumerate(patterns) if other == pattern]
               for pattern in sorted(set(patterns)) if len(set(pattern)) > 1}  # fmt: skip
    taken = 0
    while waiting and taken < SHOWN:
        for pattern in [pattern for pattern, left in waiting.items() if left][: SHOWN - taken]:
            yield waiting[pattern].pop(0)
            taken += 1
        waiting = {pattern: left for pattern, left in waiting.items() if left}


def _verdict(right: bool) -> Markup:
    return element("span", "right" if right else "wrong", class_="right" if right else "wrong")


def _example(names: Sequence[str], records: Sequence[Record]) -> Markup:
    first = records[0]
    answers = (
        element("div", element("dt", name, " ", _verdict(bool(record["correct"]))), element("dd", _said(record)))
        for name, record in zip(names, records, strict=True)
    )
    return element(
        "article",
        element("h3", f"Example {first['index']}"),
        element("pre", _short(first["prompt"]), tabindex="0"),
        element("dl", element("div", element("dt", "answer"), element("dd", _plain(first["answer"]))), *answers),
    )


def _said(record: Record) -> str:
    output, read = record.get("output"), _plain(record["prediction"])
    if not isinstance(output, str) or output.strip() == read:
        return _short(read)
    return _short(f"{output.strip() or 'no text'} → {read}")


def _plain(value: object) -> str:
    return "nothing found" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _short(text: object) -> str:
    words = str(text)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} … ({len(words) - LONGEST} characters more)"
