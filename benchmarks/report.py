"""The parts that benchmarks share: the machine's line, the log, results files, options, intervals as text."""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
import yaml

from shears.errors import InputError
from shears.evaluation.statistics import Bits, difference_p, holm, paired_difference
from shears.records.timing import processor

MODEL = "smollm2-135m"
Runs = Mapping[int, Sequence[Bits]]
"""Right answers by seed; each seed has one run, or as many as its mean weighs."""
Pair = tuple[str, Runs, Runs]
"""The name of a difference, and the two that it compares."""


def environment() -> str:
    """Return one line: processor, threads, versions, commit."""
    capability = torch.backends.cpu.get_cpu_capability()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return (
        f"{processor()} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}, commit {commit or 'unknown'}"
    )


def carry_out(command: Callable[[argparse.Namespace], object], arguments: argparse.Namespace) -> None:
    """Run a command; wrong input is one line, and exit code 2."""
    try:
        command(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def log_to_stderr() -> None:
    """Show the library's own log lines."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logger = logging.getLogger("shears")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())


def begin() -> None:
    """Show the library's own log lines, and print the line on the machine."""
    log_to_stderr()
    print(environment(), flush=True)


def rows_of(*paths: Path) -> list[dict[str, Any]]:
    """Return the lines of the results files that exist, without a last line that a kill cut off."""
    texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a results file in one write, after removing a last line that a kill cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def as_text(records: Sequence[Mapping[str, Any]], correct: str = "correct") -> str:
    """Return 1 for each correct record and 0 for the others, as one string."""
    return "".join("01"[bool(record[correct])] for record in records)


def as_bits(text: str) -> list[bool]:
    """Return the inverse of `as_text`."""
    return [bit == "1" for bit in text]


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help starts with a module's docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def words(text: str) -> list[str]:
    """Return the parts of an option's value between its commas."""
    return list(filter(None, text.split(",")))


def named(text: str) -> dict[str, str]:
    """Return NAME=VALUE pairs between commas; a value alone is its own name, or the last part of its path."""
    pairs = [part.rpartition("=") for part in words(text)]
    return {name or Path(value).name: value for name, _, value in pairs}


def numbers(text: str) -> list[float]:
    """Return the numbers between the commas of an option's value."""
    return [float(part) for part in words(text)]


def seeds(text: str) -> list[int]:
    """Return the whole numbers between the commas of an option's value."""
    return [int(part) for part in words(text)]


def setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of an option KEY=VALUE."""
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def percent(interval: Sequence[float], digits: int = 1) -> str:
    """Return a share and its interval in percent: 62.5 (58.1 to 66.9)."""
    value, low, high = (f"{100 * each:.{digits}f}" for each in interval)
    return f"{value} ({low} to {high})"


def points(interval: Sequence[float]) -> str:
    """Return a difference of shares and its interval in percentage points: +1.2 (-0.3 to +2.7)."""
    value, low, high = (f"{100 * each:+.1f}" for each in interval)
    return f"{value} ({low} to {high})"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values and their range: 2.10 (2.00 to 2.30)."""
    middle, low, high = (f"{each:.{digits}f}" for each in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the quotients of two series, one by one."""
    return [one / other for one, other in zip(values, others, strict=True)]


def paired_table(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield the table of differences that share a seed, paired by example; no line if there are none.

    Holm corrects the p values over the whole table.
    """
    common = [(title, sorted(ones.keys() & others.keys()), ones, others) for title, ones, others in pairs]
    found = [
        (title, both, [[bits for seed in both for bits in runs[seed]] for runs in (ones, others)])
        for title, both, ones, others in common
        if both
    ]
    if not found:
        return
    yield "\n| difference, paired by example | points | 95 % interval | p | p (Holm) | seeds |"
    yield "| --- " * 6 + "|"
    p_values = [difference_p(sides[0], sides[1]) for _, _, sides in found]
    for (title, both, sides), p, corrected in zip(found, p_values, holm(p_values), strict=True):
        value, low, high = (f"{100 * each:+.1f}" for each in paired_difference(*sides))
        yield f"| {title} | {value} | {low} to {high} | {p:.4f} | {corrected:.4f} | {', '.join(map(str, both))} |"
