"""Perplexity of a dense, a sparse and several healed models, on WikiText-2 and other texts, as a table.

    python -m benchmarks.heal SPARSE --work FOLDER --data TRAIN.txt --test wikitext=TEST.txt prose=OTHER.txt \\
        --arm kl: --arm labels:cross_entropy=0.1 [--tokens 1M]

An arm is NAME:KEY=VALUE,... with keys of `shears heal`. A model that has a recovery is also measured with it. FOLDER
keeps every healed model and every figure: a run that was interrupted goes on where it was. Figures are of 16 windows of
1,024 tokens, as in benchmarks.perplexity.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shears
from benchmarks.perplexity import perplexity
from benchmarks.report import begin, parser_of
from shears.records.artifacts import RECOVERY_FOLDER, write_json


def main() -> None:
    """Heal each arm, measure every model, and print the table so far after each."""
    arguments = _arguments()
    begin()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tests = dict(pair.split("=", 1) for pair in arguments.test)
    names = ["seconds", *tests]
    print(f"\n| model | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for name, model in (("dense", arguments.teacher), ("sparse", arguments.sparse)):
        _print_rows(name, None, arguments.work, model, tests)
    for arm in arguments.arm:
        name, settings = parse_arm(arm)
        output = arguments.work / name
        healed(
            {"data": arguments.data, "tokens": arguments.tokens, "seed": arguments.seed, **settings}, arguments, output
        )
        _print_rows(name, _seconds(output), arguments.work, str(output), tests)


def parse_arm(arm: str) -> tuple[str, dict[str, str]]:
    """Return the name of an arm and its settings; ValueError for a setting without =."""
    name, _, text = arm.partition(":")
    settings = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"an arm must be NAME:KEY=VALUE,..., got {arm!r}")
        settings[key] = value
    return name, settings


def healed(settings: Mapping[str, Any], arguments: argparse.Namespace, output: Path) -> None:
    """Heal into `output` unless it is there; the seconds of all its starts are added up beside it."""
    if output.exists():
        return
    clock = output.with_name(output.name + ".seconds.json")
    started = time.monotonic()
    before = json.loads(clock.read_text()) if clock.is_file() else 0.0
    try:
        shears.heal(arguments.sparse, output, teacher=arguments.teacher, **settings)
    finally:
        write_json(clock, before + time.monotonic() - started)


def _seconds(output: Path) -> float:
    return float(json.loads(output.with_name(output.name + ".seconds.json").read_text()))


def _print_rows(name: str, seconds: float | None, work: Path, model: str, tests: Mapping[str, str]) -> None:
    """Print a line of a model, and another one of it with its recovery if it has one."""
    _print_row(name, seconds, _figures(work, name, model, tests))
    if (recovery := Path(model) / RECOVERY_FOLDER).is_dir():
        adapted = f"{name}, recovery"
        _print_row(adapted, seconds, _figures(work, adapted, model, tests, adapter=str(recovery)))


def _figures(
    work: Path, name: str, model: str, tests: Mapping[str, str], adapter: str | None = None
) -> dict[str, float]:
    """Return the perplexity on every text, from an earlier run where it was measured."""
    figures = {}
    for test, data in tests.items():
        file = work / f"{name}.{test}.json"
        if not file.is_file():
            result = perplexity(model, data, adapter=adapter)
            write_json(file, {"data": data, "value": result.value, "ci95": result.ci95, "n": result.n})
        figures[test] = float(json.loads(file.read_text())["value"])
    return figures


def _print_row(name: str, seconds: float | None, figures: Mapping[str, float]) -> None:
    cells = ["" if seconds is None else f"{seconds:.0f}", *(f"{value:.2f}" for value in figures.values())]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("sparse")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", required=True, help="text to heal on")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME:KEY=VALUE,...")
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
