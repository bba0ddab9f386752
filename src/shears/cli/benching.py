"""The verb that measures speed: a table of contestants, a table of ratios."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.cli.tables import console, print_line
from shears.config import BenchConfig


@app.command()
@with_stage_options("bench", BenchConfig)
def bench(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="Package that export wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as data.")] = False,
    *,
    values: Values,
) -> None:
    """Measure a package beside the dense model.

    Tokens a second when it writes (decode) and when it reads (prefill), seconds to the first token behind a prompt of
    64, memory of the weights; in turns in one run, beside the same model dense in our kernels and in transformers.

    shears bench package --threads 1
    """
    import shears

    data = shears.bench(package, **values)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        print_bench(data)


def print_bench(data: Mapping[str, Any]) -> None:
    """Print figures and ratios, each with its spread over the rounds."""
    threads = f"{data['threads']} thread{'' if data['threads'] == 1 else 's'}"
    table = Table("", "decode", f"prefill {data['prompt_tokens']}", "first token", "memory", title="tokens a second")
    for row in data["contestants"]:
        speeds = (_spread(row[key], 0) for key in ("decode_tokens_per_second", "prefill_tokens_per_second"))
        first = _spread({key: 1000 * value for key, value in row["time_to_first_token_seconds"].items()}, 0, " ms")
        table.add_row(row["name"], *speeds, first, f"{row['memory_bytes'] / 1e6:,.0f} MB")
    console.print(table)
    memory = {row["name"]: row["memory_bytes"] for row in data["contestants"]}
    ratios = Table("the package over", "decode", "prefill", "first token", "memory", title="times as fast")
    for row in data["ratios"]:
        times = (_spread(row[key], 2) for key in ("decode", "prefill", "first_token"))
        ratios.add_row(row["over"], *times, f"{data['memory_bytes'] / memory[row['over']]:.2f} of it")
    console.print(ratios)
    print_line(f"{data['cpu']}, {threads}")
    print_line(f"figures: the median of {data['rounds']} rounds in turns, below it the least to the most")
    print_line("first token: behind a prompt of 64; memory: weights and our caches, without Python")


def _spread(spread: Mapping[str, float], digits: int, unit: str = "") -> str:
    middle, low, high = (f"{spread[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle}{unit}\n{low} to {high}"
