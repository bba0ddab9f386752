"""Pairs of measurements: are they comparable, paired differences, two runs side by side.

Two measurements are comparable if they have the same task and protocol, and the same examples or
data.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from shears.evaluation.comparison import Key, example_of, numbered
from shears.evaluation.statistics import mcnemar, paired_difference
from shears.report.charts import measurement_bars
from shears.report.html import element, table
from shears.report.records import Record, Run
from shears.report.words import GAP, points

Pair = tuple[str, Record, Record]  # name, measurement, its reference
STAGES = ("sparsify", "train", "search", "export", "evaluate")  # recipe sections that a run reads


def comparison(run: Run, other: Run) -> tuple[object, ...]:
    """Return the lead, pictures and tables of the section that compares two runs."""
    names = _names(run, other)
    shared = [name for name in run.figures if name in other.figures]
    pairs = [(f"{name}: {' against '.join(names)}", run.figures[name], other.figures[name]) for name in shared]
    lead = f"{names[0]} compared with {names[1]}."
    tables = (pairs_table(pairs), _recipe_differences(run.recipe, other.recipe, names))
    if reason := _why_not_drawn(run, other):
        return f"{lead} Their figures are not comparable: {reason}.", *tables
    if moved := [name for name, *pair in pairs if other_prompts(dict(zip("ab", pair, strict=True)))]:
        lead += f" The questions are the same but the prompts differ ({'; '.join(moved)})."
    rows = [{**row, "name": f"{names[0]}: {row['name']}"} for row in run.models]
    rows += [{**row, "name": f"{names[1]}: {row['name']}"} for row in other.models]
    return lead + unpaired_words(pairs), measurement_bars("Both runs with 95 % intervals", rows), *tables


def _names(run: Run, other: Run) -> tuple[str, str]:
    """Return the names of the runs' folders, with the folders above them if the names are equal."""
    one, two = (each.folder.resolve() for each in (run, other))
    if one.name != two.name:
        return one.name, two.name
    return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"


def _why_not_drawn(run: Run, other: Run) -> str | None:
    """Return why the figures of two runs do not belong in one picture; None if they do."""
    if not run.models or not other.models:
        return "one run has none"
    left, right = map(_measurements, (run, other))
    pairs = [(left[name], right[name]) for name in left if name in right]
    pairs = pairs or [(next(iter(left.values())), next(iter(right.values())))]
    return next(filter(None, (incomparable(*pair) for pair in pairs)), None)


def _measurements(run: Run) -> dict[str, Record]:
    """Return each model's measurement; without its file, what evaluation.json has."""
    shared = {key: (run.summary or {}).get(key) for key in ("task", "data")}
    return {row["name"]: {**shared, "n": row["n"], **run.figures.get(row["name"], {})} for row in run.models}


def _recipe_differences(recipe: Record, other: Record, names: tuple[str, str]) -> Markup:
    """Return the keys in which two recipes differ, as far as a run reads them."""
    left, right = (dict(_keys(each)) for each in (recipe, other))
    keys = [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]
    rows = [(key, str(left.get(key, "not set")), str(right.get(key, "not set"))) for key in keys]
    same = element("p", "Their recipes are the same.")
    return table("Recipe keys that differ", ("key", *names), rows) if rows else same


def _keys(recipe: Record, section: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys that a run reads, such as `train.epochs`, with their values."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            if section or key in STAGES:
                yield from _keys(value, f"{section}{key}.")
        elif section or key != "output":
            yield f"{section}{key}", value


def incomparable(one: Record, other: Record) -> str | None:
    """Return why two measurements cannot be compared, such as their protocols; None if they can.

    Examples are identified by their questions, whatever the file, the order and the prompt. Without
    examples, the data are identified by their hash, or by their path if no hash is recorded.
    """
    for name in ("task", "protocol"):
        if (left := _setting(one, name)) != (right := _setting(other, name)):
            return f"the {name}s are {left} and {right}"
    return _other_examples(one, other) if _is_judged(one) and _is_judged(other) else _other_data(one, other)


def _setting(measurement: Record, name: str) -> object:
    return measurement.get("config", {}).get(name, measurement.get(name))


def _is_judged(measurement: Record) -> bool:
    records = measurement.get("records", [])
    return bool(records) and all(isinstance(record.get("correct"), bool) for record in records)


def _other_examples(one: Record, other: Record) -> str | None:
    left, right = map(_by_example, (one, other))
    if left.keys() != right.keys():
        both = len(left.keys() & right.keys())
        have_ids = all("id" in record for record in (*left.values(), *right.values()))
        known = "" if have_ids else " (examples without an id are identified by their prompts)"
        return f"they have {len(left):,} and {len(right):,} examples, {both:,} of them in common{known}"
    changed = sum(left[key].get("answer") != right[key].get("answer") for key in left)
    return f"{changed:,} of the {len(left):,} examples have another right answer" if changed else None


def _by_example(measurement: Record) -> dict[Key, Record]:
    records = measurement["records"]
    names = (f"{record.get('task', '')} {example_of(record)}" for record in records)
    return dict(zip(numbered(names), records, strict=True))


def _other_data(one: Record, other: Record) -> str | None:
    hashes, paths = ([_setting(each, name) for each in (one, other)] for name in ("data_sha256", "data"))
    left, right = hashes if all(hashes) else paths
    if left != right:
        return f"{paths[0]} had other content" if paths[0] == paths[1] else f"the data are {paths[0]} and {paths[1]}"
    for name in ("n", "sequence_length"):
        if (left := _setting(one, name)) != (right := _setting(other, name)):
            return f"{name} is {left} and {right}"
    return None


def _why_unpaired(one: Record, other: Record) -> str | None:
    """Return why the answers of two measurements cannot be paired; None if they can."""
    judged = _is_judged(one) and _is_judged(other)
    return incomparable(one, other) or (None if judged else "no answers are recorded as right or wrong")


def unpaired_words(pairs: Iterable[Pair]) -> str:
    """Return sentences that name the pairs without a test, and why."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, one, other in pairs:
        if reason := _why_unpaired(one, other):
            reasons[reason].append(name)
    return "".join(f" Not paired ({'; '.join(names)}): {reason}." for reason, names in reasons.items())


def aligned(measurements: Sequence[Record]) -> list[list[Record]]:
    """Return all records in the order of the first measurement's; empty if unpaired."""
    if not measurements or any(_why_unpaired(measurements[0], each) for each in measurements):
        return []
    by_example = [_by_example(each) for each in measurements]
    return [[records[key] for key in by_example[0]] for records in by_example]


def other_prompts(figures: Mapping[str, Record]) -> list[str]:
    """Return the models that were asked the first model's questions in other prompts."""
    records = aligned(list(figures.values()))
    prompts = [[record.get("prompt") for record in each] for each in records]
    return [name for name, each in zip(figures, prompts, strict=False) if each != prompts[0]]


def correct(records: Sequence[Record]) -> list[bool]:
    """Return whether a model's answer is right, example by example."""
    return [bool(record["correct"]) for record in records]


def pairs_table(pairs: Iterable[Pair]) -> Markup | None:
    """Return paired differences with 95 % intervals and p; None if nothing can be paired."""
    rows = [(name, *_difference(*records)) for name, *pair in pairs if (records := aligned(pair))]
    head = ("models", "difference, points", "95 % interval", "only the first right", "only the second", "p (McNemar)")
    tested = table("Paired differences on the same examples", head, rows)
    return element("div", tested, class_="wide") if rows else None


def _difference(one: Sequence[Record], other: Sequence[Record]) -> tuple[str, str, int, int, str]:
    gap = paired_difference([correct(one)], [correct(other)])
    test = mcnemar(correct(one), correct(other))
    edges = f"{points(gap.low)} to {points(gap.high)}".replace(" ", GAP)
    p = "below 0.0001" if test.p_mid < 1e-4 else f"{test.p_mid:.2g}"
    return points(gap.value), edges, test.won, test.lost, p
