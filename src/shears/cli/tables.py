"""What the verbs print: tables a newcomer understands, 80 columns wide."""

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shears.config.export import FORMATS
from shears.progress import is_first_process
from shears.records.artifacts import PACKAGE, SPARSITY, read_json
from shears.records.cards.tables import ranks_by_kind
from shears.records.measures import is_share, other_readings, seen_words

console = Console(quiet=not is_first_process())

BARS = " ▁▂▃▄▅▆▇█"
EXPORTED = dict.fromkeys(form.folder for form in FORMATS.values())
WHOLE = {form.folder for form in FORMATS.values() if form.is_model}  # exports that are a model by themselves
FEW_ZEROS, ALL_ZEROS = (247, 251, 255), (8, 48, 107)  # red, green, blue of a cell's background: near white, dark blue


def quoted(path: str | Path) -> str:
    """Return a path as a command to copy needs it."""
    return shlex.quote(str(path))


def print_line(text: str) -> None:
    """Print one line of text as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def sparsity_line(folder: Path) -> str:
    """Return how sparse a model came out, in words."""
    record = read_json(folder / SPARSITY)
    zeros = sum(linear["zeros"] for linear in record["linears"].values())
    size = sum(linear["shape"][0] * linear["shape"][1] for linear in record["linears"].values())
    return f"{zeros / size:.2%} of the {size / 1e6:.1f} M weights of {len(record['linears'])} linears are zero"


def package_line(folder: Path) -> str:
    """Return how large a package came out, in words."""
    record = read_json(folder / PACKAGE)
    sizes, ratio = record["bytes"], record["ratio"]
    return (
        f"{record['num_linears']} linears packed as {record['values']}, {record['sparsity']:.1%} zeros, "
        f"{sizes['linears'] / 1e6:.1f} MB ({ratio['linears']:.3f} of dense); the model {sizes['model'] / 1e6:.1f} MB "
        f"({ratio['model']:.3f} of dense)"
    )


def figure(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return a figure and its interval as text: percent for shares, two places for perplexity, else four digits."""
    form = ".1%" if is_share(data["metric"]) else ".2f" if re.search("perplexity|bits_per", data["metric"]) else ".4g"
    interval = " to ".join(f"{end:{form}}" for end in data["ci95"]) if data["ci95"] else "not known"
    return f"{data['value']:{form}}", interval


def print_evaluation(title: str, data: Mapping[str, Any]) -> None:
    """Print one measurement, and what its details add: another reading of the answers, the figures of each task."""
    table = Table("task", "metric", "value", "95 % interval", "n", title=Text(title))
    for row in data.get("figures") or [data, *other_readings(data)]:
        value, interval = figure(row)
        table.add_row(Text(row["task"]), Text(row["metric"]), value, interval, f"{row['n']:,}")
    if len({row["task"] for row in data.get("figures", [])}) > 1:
        table.add_section()
        table.add_row("mean of the tasks", Text(data["metric"]), *figure(data), f"{data['n']:,}")
    console.print(table)
    if seen := seen_words(data):
        print_line(seen)


def print_search(path: Path) -> None:
    """Print what a search chose, beside the heuristic it started from."""
    result = read_json(path)
    evaluations, chosen = result["evaluations"], result["chosen"]
    table = Table("configuration", *chosen["metrics"], title=f"{len(evaluations)} configurations tried")
    for name, entry in (("first tried", evaluations[0]), ("chosen", chosen)):
        table.add_row(name, *(_plain(entry["metrics"].get(column)) for column in chosen["metrics"]))
    console.print(table)
    if race := result.get("race"):
        share = race["examples"] / race["examples_without"]
        print_line(
            f"race: {race['decided_early']} decided early, {share:.0%} of the examples seen, error {race['error']:g}"
        )
    if gain := result.get("gain"):
        test = gain["test"]
        interval = "{:+.3g} to {:+.3g}, 95 %".format(*test["ci95"]) if test["ci95"] else "no interval is known"
        print_line(f"{gain['figure']} on {test['n']} test examples: chosen {test['chosen']:.4g}, heuristic "
                   f"{test['heuristic']:.4g}, difference {test['difference']:+.3g} ({interval})")  # fmt: skip
        for note in gain["notes"]:
            print_line(f"  {note}")
    print_line(f"{path}: {_front(result)}.")


def _plain(value: int | float | None) -> str:
    """A figure of a search; what breaks a bound on a size was not measured."""
    return "not measured" if value is None else f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}"


def _front(result: Mapping[str, Any]) -> str:
    """Return how many configurations are on the front of which objectives, and what they dominate."""
    objectives, volume = result.get("objectives", ["quality", "parameters"]), result.get("hypervolume")
    bounds = f" with {' and '.join(result['constraints'])}" if result.get("constraints") else ""
    text = f"{len(result['pareto'])} configurations on the front of {' against '.join(objectives)}{bounds}"
    if volume is None:
        return text
    worst = ", ".join(f"{name} {_short(name, value)}" for name, value in volume["reference"].items())
    return f"{text}; they dominate {volume['value']:.4g} (hypervolume, from {worst})"


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the end of a run: what sparsity cost, what the adapter brought back, where everything is."""
    rows = summary["models"]
    if rows:
        _print_models(f"{summary['task']} on {summary['data']} (n = {rows[0]['n']})", rows)
    names = ("sparse", "super_adapter", "search", *EXPORTED, "evaluation.json")
    for name in (name for name in names if (folder / name).exists()):
        print_line(f"  {folder / name}")
    exists = [name for name in EXPORTED if name in WHOLE and (folder / name).exists()]
    last = rows[-1]["name"] if rows else exists[-1] if exists else ""
    whole, sub_adapter = folder / last if last in WHOLE else folder / "sparse", folder / "sub_adapter"
    beside = (
        f" --adapter {quoted(sub_adapter)}" if last in ("", "sparse + sub-adapter") and sub_adapter.exists() else ""
    )
    print_line(f'Try it: shears generate {quoted(whole)}{beside} --prompt "..."')


def _print_models(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the models of a run: figures, other readings of the answers, sizes; then what they saw in training."""
    readings = [{reading["metric"]: figure(reading)[0] for reading in other_readings(row)} for row in rows]
    others = list(dict.fromkeys(name for row in readings for name in row))
    short = (name.removeprefix("accuracy ") for name in others)
    head = ("model", rows[0]["metric"], "95 % interval", *short, "zeros", "non-zeros", "adapter")
    table = Table(*head, title=Text(title))
    for row, reading in zip(rows, readings, strict=True):
        table.add_row(
            row["name"], *figure(row), *(reading.get(name, "-") for name in others), f"{row['sparsity']:.0%}",
            f"{row['nonzeros'] / 1e6:.1f} M",
            f"{row['adapter_parameters'] / 1e6:.1f} M" if row["adapter_parameters"] else "-",
        )  # fmt: skip
    console.print(table)
    for seen in filter(None, (seen_words(row, row["name"]) for row in rows)):
        print_line(seen)
    print_line("zeros: share in the decoder blocks' linears, embeddings stay dense; non-zeros: in the whole model.")


def print_inspection(data: Mapping[str, Any]) -> None:
    """Print what an artifact is."""
    print_line(f"{data.get('path')}: {data.get('kind')}")
    for name, value in data.items():
        if name in ("path", "kind") or value is None or isinstance(value, dict | list):
            continue
        print_line(f"  {name}: {_short(name, value)}")
    if data.get("sparsity_by_linear"):
        print_heat_map(data)
    groups = {name: group["ranks"] for name, group in data.get("groups", {}).items()}
    _print_ranks(groups or data.get("ranks") or data.get("chosen", {}).get("ranks", {}))
    if "chosen" in data:
        print_line(f"  metrics: {data['chosen']['metrics']}; {len(data['evaluations'])} evaluations")
        print_line(f"  {_front(data)}")
    for row in data.get("models", []):
        print_line(f"  {row['name']}: {row['metric']} {figure(row)[0]} ({figure(row)[1]}, n = {row['n']})")


def print_heat_map(data: Mapping[str, Any]) -> None:
    """Print the share of zeros of every layer (rows) and kind of linear (columns); equal neighbours are one row.

    Columns that do not fit beside each other go into another map below.
    """
    rows = {
        layer: {**row, "all": data["sparsity_by_layer"][layer]} for layer, row in data["sparsity_by_linear"].items()
    }
    total = {**data["sparsity_by_kind"], "all": data["sparsity"]}
    labels = max(len("layers"), 2 * max(map(len, rows)) + 1)
    print_line("  share of zeros by layer and kind of linear:")
    widths = {column: max(len(_cell(row.get(column))) for row in (total, *rows.values())) for column in total}
    for columns in _bands(widths, console.width - labels):
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("layers", no_wrap=True)
        for column in columns:
            table.add_column(Text(_header(column)), justify="right", no_wrap=True)
        for label, row in _ranges(rows, columns):
            table.add_row(label, *(_cell(row.get(column)) for column in columns))
        table.add_section()
        table.add_row("all", *(_cell(total[column]) for column in columns))
        console.print(table)


def _header(kind: str) -> str:
    """One line for each part of a kind's name."""
    return kind.replace(".", ".\n")


def _bands(cells: Mapping[str, int], width: int) -> list[list[str]]:
    """Split the columns, given with the widths of their cells, into groups that fit; at least one column each."""
    bands: list[list[str]] = []
    free = 0
    for column, cell in cells.items():
        needed = max(cell, *map(len, _header(column).split("\n"))) + 1
        if needed > free or not bands:
            bands.append([])
            free = width
        bands[-1].append(column)
        free -= needed
    return bands


def _ranges(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
    """Return each run of consecutive layers that print alike, as `first-last`, with the first one's figures."""
    found: list[tuple[str, Mapping[str, float]]] = []
    for _, run in groupby(rows, key=lambda layer: [_percent(rows[layer].get(column)) for column in columns]):
        layers = list(run)
        found.append((layers[0] if len(layers) == 1 else f"{layers[0]}-{layers[-1]}", rows[layers[0]]))
    return found


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cell(share: float | None) -> Text:
    """Return a share with a background that darkens with it, or a bar of its height where there are no colours."""
    if share is None:
        return Text("")
    if console.no_color or console.color_system is None:
        bar = "" if console.options.ascii_only else BARS[round(share * (len(BARS) - 1))]
        return Text(bar + _percent(share))
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(FEW_ZEROS, ALL_ZEROS, strict=True))
    return Text(_percent(share), Style(color="white" if share > 0.5 else "black", bgcolor=f"rgb({red},{green},{blue})"))


def _short(name: str, value: Any) -> str:
    if name == "size_bytes":
        return f"{value / 1e6:,.1f} MB"
    if name.endswith(("fingerprint", "_sha256")) and value:
        return str(value)[:16]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_ranks(ranks: Mapping[str, Any]) -> None:
    """Print one row per kind of group: which layers have which rank."""
    for kind, words in ranks_by_kind(ranks).items():
        print_line(f"  ranks of {kind}: {words}")
