"""How fast the package of a run is, beside the dense model: what `shears bench` printed, kept in bench.json."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from shears.report.html import table
from shears.report.intervals import intervals
from shears.report.records import Record
from shears.report.section import note, picture
from shears.report.words import rate, size

Spread = Mapping[str, float]  # median, min, max over the rounds
DECODE, PREFILL, FIRST = "decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds"
STOCK = "dense, transformers"  # how the names of those begin that run in transformers


def faster_than_stock(bench: Record) -> Spread | None:
    """Return how many times as fast the package decodes as the dense model in transformers, in its faster way."""
    found = [row["decode"] for row in bench["ratios"] if row["over"].startswith(STOCK)]
    return min(found, key=lambda spread: float(spread["median"])) if found else None


def speed_pictures(bench: Record) -> tuple[Markup, Markup]:
    """Return the speeds of every contestant, decoding and reading a prompt, with their figures behind them."""
    told = note(f"Dots are medians of {bench['rounds']} rounds in turns, whiskers the least and the most of them.")
    rows = bench["contestants"]
    decoding = [(row["name"], _spread(row[DECODE]), size(row["memory_bytes"])) for row in rows]
    reading = [(row["name"], _spread(row[PREFILL]), _spread(row[FIRST], 1e3)) for row in rows]
    return (
        _picture("Tokens a second, decoding", DECODE, rows, (("model", "tokens/s", "memory"), decoding), told),
        _picture(
            "Tokens a second, reading a prompt",
            PREFILL,
            rows,
            (("model", "tokens/s", "first token, ms"), reading),
            told,
        ),
    )


def _picture(
    name: str, figure: str, rows: Sequence[Record], data: tuple[Sequence[str], Sequence[Sequence[str]]], told: Markup
) -> Markup:
    dots = [
        {"name": row["name"], "value": row[figure]["median"], "ci95": [row[figure]["min"], row[figure]["max"]]}
        for row in rows
    ]
    return picture(name, intervals(name, dots, rate, zero=True), table(name, *data), told)


def speed_words(bench: Record) -> str:
    """Return where and what was measured."""
    threads = f"{bench['threads']} thread{'s' * (bench['threads'] != 1)}"
    return (
        f"{bench['package']} on {bench['cpu']}, {threads}: {bench['new_tokens']} tokens behind a prompt, and a prompt "
        f"of {bench['prompt_tokens']} tokens read. All in one run, in turns."
    )


def _spread(spread: Spread, unit: float = 1.0) -> str:
    middle, low, high = (rate(unit * spread[key]) for key in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"
