"""Where a run comes from: the recipe, versions, seeds, fingerprints of what was made from what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from shears.report.html import element, table
from shears.report.records import Record, Run
from shears.report.words import duration

FINGERPRINTS = ("base_fingerprint", "calibration_fingerprint", "data_fingerprint", "super_adapter_fingerprint",
                "ranks_fingerprint", "fingerprint")  # fmt: skip
SHORT = 12
STAGES = ("sparsify", "train", "search", "export", "evaluate")  # sections of a recipe that a run reads


def stages_table(run: Run) -> Markup:
    """Return each stage with its version, seed and fingerprints."""
    rows = (
        (name, record.get("shears_version", ""), record.get("config", {}).get("seed", ""), _fingerprints(record))
        for name, record in run.stages()
    )
    return table("Stages", ("stage", "shears", "seed", "made from, and itself (sha256)"), rows)


def _fingerprints(record: Record) -> str:
    named = ((name.removesuffix("_fingerprint").replace("_", " "), record.get(name)) for name in FINGERPRINTS)
    return ", ".join(f"{'itself' if name == 'fingerprint' else name} {value[:SHORT]}" for name, value in named if value)


def versions_table(run: Run) -> Markup | None:
    """Return the versions each stage ran with, one row where they are the same; None where none were kept."""
    by_stage = {line["stage"]: _versions(run.worked_at(line["stage"])) for line in run.times}
    names = list(dict.fromkeys(name for found in by_stage.values() for name in found))
    rows = {stage: tuple(found.get(name, "not kept") for name in names) for stage, found in by_stage.items()}
    if len({*rows.values()}) == 1:
        rows = {"all": next(iter(rows.values()))}
    return table("Versions", ("stage", *names), ((stage, *row) for stage, row in rows.items())) if names else None


def _versions(lines: Sequence[Record]) -> dict[str, str]:
    """Return the version by package; several where a stage went on with another."""
    found = dict[str, dict[str, None]]()
    for line in lines:
        for name, version in line.get("versions", {}).items():
            found.setdefault(name, {})[str(version)] = None
    return {name: "; ".join(versions) for name, versions in found.items()}


def times_table(run: Run) -> Markup | None:
    """Return how long each stage took and where it ran; None where no times were kept."""
    if not run.times:
        return None
    places = dict.fromkeys(str(line["machine"]) for line in run.times)
    stages = dict.fromkeys(line["stage"] for line in run.times)
    rows = [(stage, *_took(run.worked_at(stage), several=len(places) > 1)) for stage in stages]
    total = ("all", _seconds(run.times), *[""] * (len(rows[0]) - 2))
    if len(places) > 1:
        return table("Times", ("stage", "time", "times begun", "on"), [*rows, total])
    return table(f"Times on {next(iter(places))}", ("stage", "time", "times begun"), [*rows, total])


def _took(lines: Sequence[Record], several: bool) -> tuple[str, ...]:
    """Return the time, how often it was begun and, of several machines, those it ran on."""
    stopped = sum(not line["finished"] for line in lines)
    begun = f"{len(lines)}, {stopped} not finished" if stopped else f"{len(lines)}"
    return _seconds(lines), begun, *(["; ".join(dict.fromkeys(str(line["machine"]) for line in lines))] * several)


def _seconds(lines: Sequence[Record]) -> str:
    return duration(sum(float(line["seconds"]) for line in lines))


def recipe_text(run: Run) -> Markup:
    """Return the resolved recipe as text, behind a click."""
    words = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    return element("details", element("summary", "The resolved recipe"), element("pre", words, tabindex="0"))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return every recipe key of a run in which two differ, with both values; the output folder does not count."""
    left, right = dict(_flat(one)), dict(_flat(other))
    keys = [key for key in dict.fromkeys([*left, *right]) if _counts(key) and left.get(key) != right.get(key)]
    return [(key, _value(left, key), _value(right, key)) for key in keys]


def _counts(key: str) -> bool:
    section, dot, _ = key.partition(".")
    return section in STAGES if dot else key != "output"


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _value(flat: Mapping[str, Any], key: str) -> str:
    return str(flat[key]) if key in flat else "not set"
