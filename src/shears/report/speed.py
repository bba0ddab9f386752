"""How fast the package of a run is, beside the dense model: what `shears bench` printed, kept in bench.json."""

from collections.abc import Mapping

from markupsafe import Markup

from shears.report.html import table
from shears.report.intervals import intervals
from shears.report.records import Record
from shears.report.section import note, picture
from shears.report.words import digits, size

Spread = Mapping[str, float]  # median, min, max over the rounds
DECODE, PREFILL, FIRST = "decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds"
STOCK = "dense, transformers"  # how the names of those begin that run in transformers


def faster_than_stock(bench: Record) -> Spread | None:
    """Return how many times as fast the package decodes as the dense model in transformers, in its faster way."""
    found = [row["decode"] for row in bench["ratios"] if row["over"].startswith(STOCK)]
    return min(found, key=lambda spread: float(spread["median"])) if found else None


def speed_picture(bench: Record) -> Markup:
    """Return the speed of decoding of every contestant, with all figures behind it."""
    rows = [
        {"name": row["name"], "value": row[DECODE]["median"], "ci95": [row[DECODE]["min"], row[DECODE]["max"]]}
        for row in bench["contestants"]
    ]
    name = "Tokens a second, decoding"
    told = note(f"Dots are medians of {bench['rounds']} rounds in turns, whiskers the least and the most of them.")
    return picture(name, intervals(name, rows, digits), _table(bench), told)


def speed_words(bench: Record) -> str:
    """Return where and what was measured."""
    threads = f"{bench['threads']} thread{'s' * (bench['threads'] != 1)}"
    return (
        f"{bench['package']} on {bench['cpu']}, {threads}: {bench['new_tokens']} tokens behind a prompt, and a prompt "
        f"of {bench['prompt_tokens']} tokens read. All in one run, in turns."
    )


def _table(bench: Record) -> Markup:
    head = ("model", "decode, tokens/s", f"prefill of {bench['prompt_tokens']}, tokens/s", "first token, ms", "memory")
    rows = (
        (row["name"], _spread(row[DECODE]), _spread(row[PREFILL]), _spread(row[FIRST], 1e3), size(row["memory_bytes"]))
        for row in bench["contestants"]
    )
    return table("Speed: median, and the range over the rounds", head, rows)


def _spread(spread: Spread, unit: float = 1.0) -> str:
    middle, low, high = (digits(unit * spread[key]) for key in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"
