"""The tables and lines that the verbs print, at most 80 columns wide."""

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shears.config.export import FORMATS
from shears.progress import VisibleConsole, is_first_process
from shears.records.artifacts import PACKAGE, find_record, read_json
from shears.records.cards.tables import ranks_by_kind
from shears.records.measures import is_share, other_readings, seen_words

if TYPE_CHECKING:
    from shears.runs.plan import RunPlan

console = VisibleConsole(quiet=not is_first_process())

INSTRUCTION_SETS = {
    "avx512": "avx512",
    "avx2": "avx2",
    "neon_dot": "neon with dot product",
    "neon": "neon",
    "portable": "portable",
}  # of the kernels, the fastest first
BARS = " ▁▂▃▄▅▆▇█"
EXPORTED = dict.fromkeys(form.folder for form in FORMATS.values())
WHOLE_MODELS = {form.folder for form in FORMATS.values() if form.is_model}
FEW_ZEROS = (247, 251, 255)  # near white: red, green and blue of a cell's background
ALL_ZEROS = (8, 48, 107)  # dark blue


def quoted(path: str | Path) -> str:
    """Return a path quoted for a shell, for commands that people copy."""
    return shlex.quote(str(path))


def print_line(text: str) -> None:
    """Print one line of text, without markup and without wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def sparsity_line(folder: Path) -> str:
    """Return the sparsity of a pruned or healed model as a sentence."""
    path = find_record(folder)
    assert path is not None, folder
    record = read_json(path)
    zeros = sum(linear["zeros"] for linear in record["linears"].values())
    size = sum(linear["shape"][0] * linear["shape"][1] for linear in record["linears"].values())
    return f"{zeros / size:.2%} of the {size / 1e6:.1f} M weights of {len(record['linears'])} linears are zero"


def package_line(folder: Path) -> str:
    """Return the size of a package as a sentence."""
    record = read_json(folder / PACKAGE)
    sizes = record["bytes"]
    ratio = record["ratio"]
    return (
        f"{record['num_linears']} linears packed as {record['values']}, {record['sparsity']:.1%} zeros, "
        f"{sizes['linears'] / 1e6:.1f} MB ({ratio['linears']:.3f} of dense); the model {sizes['model'] / 1e6:.1f} MB "
        f"({ratio['model']:.3f} of dense)"
    )


def figure(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return a figure and its interval as text: shares in percent, perplexities with two decimals, else four digits."""
    form = ".1%" if is_share(data["metric"]) else ".2f" if re.search("perplexity|bits_per", data["metric"]) else ".4g"
    interval = " to ".join(f"{end:{form}}" for end in data["ci95"]) if data["ci95"] else "unknown"
    return f"{data['value']:{form}}", interval


def print_evaluation(title: str, data: Mapping[str, Any]) -> None:
    """Print one evaluation; its details add other readings of the answers, or the figures of each task."""
    table = Table("task", "metric", "value", "95 % interval", "n", title=Text(title))
    for row in data.get("figures") or [data, *other_readings(data)]:
        value, interval = figure(row)
        table.add_row(Text(row["task"]), Text(row["metric"]), value, interval, f"{row['n']:,}")
    if len({row["task"] for row in data.get("figures", [])}) > 1:
        table.add_section()
        table.add_row("mean of the tasks", Text(data["metric"]), *figure(data), f"{data['n']:,}")
    console.print(table)
    if curve := data.get("curve"):
        _print_curve(curve)
    if seen := seen_words(data):
        print_line(seen)


def _print_curve(curve: Mapping[str, Any]) -> None:
    """Print the accuracy at every rank, with its paired difference to the largest one, and the area under the curve."""
    table = Table("rank", "parameters", "accuracy", "95 % interval", "minus the largest, points", "p, Holm")
    for point in curve["points"]:
        value, interval = figure({**point, "metric": "accuracy"})
        table.add_row(f"{point['rank']}", f"{point['parameters']:,}", value, interval, *_gap(point["difference"]))
    console.print(table)
    low, high = curve["aurac_ci95"]
    print_line(
        f"area under the curve (AURAC) {curve['aurac']:.1%} ({low:.1%} to {high:.1%}), {len(curve['points'])} ranks"
    )


def _gap(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if not difference:
        return "", ""
    low, high = (100 * end for end in difference["ci95"])
    return f"{100 * difference['value']:+.1f} ({low:+.1f} to {high:+.1f})", f"{difference['p_holm']:.3f}"


def print_search(path: Path) -> None:
    """Print the configuration that a search chose beside the heuristic, which it evaluated first."""
    result = read_json(path)
    evaluations = result["evaluations"]
    chosen = result["chosen"]
    table = Table("configuration", *chosen["metrics"], title=f"{len(evaluations)} configurations evaluated")
    for name, entry in (("first", evaluations[0]), ("chosen", chosen)):
        table.add_row(name, *(_plain(entry["metrics"].get(column)) for column in chosen["metrics"]))
    console.print(table)
    if race := result.get("race"):
        share = race["examples"] / race["examples_without"]
        print_line(
            f"race: {race['decided_early']} decided early, {share:.0%} of the examples used, error {race['error']:g}"
        )
    if gain := result.get("gain"):
        test = gain["test"]
        interval = "{:+.3g} to {:+.3g}, 95 %".format(*test["ci95"]) if test["ci95"] else "interval unknown"
        print_line(
            f"{gain['figure']} on {test['n']} test examples: chosen {test['chosen']:.4g}, heuristic "
            f"{test['heuristic']:.4g}, difference {test['difference']:+.3g} ({interval})"
        )
        for note in gain["notes"]:
            print_line(f"  {note}")
    print_line(f"{path}: {_front(result)}.")


def _plain(value: int | float | None) -> str:
    """Return a figure of a search; a quality is missing where a bound on a size was not met."""
    return "not measured" if value is None else f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}"


def _front(result: Mapping[str, Any]) -> str:
    """Return the size of the Pareto front, its objectives and its hypervolume as a sentence."""
    objectives = result.get("objectives", ["quality", "parameters"])
    volume = result.get("hypervolume")
    bounds = f" with {' and '.join(result['constraints'])}" if result.get("constraints") else ""
    text = f"{len(result['pareto'])} configurations on the Pareto front of {' and '.join(objectives)}{bounds}"
    if volume is None:
        return text
    worst = ", ".join(f"{name} {_short(name, value)}" for name, value in volume["reference"].items())
    return f"{text}; hypervolume {volume['value']:.4g} (reference {worst})"


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the figures of a run's models, where the artifacts are, and a command to try the last model."""
    rows = summary["models"]
    if rows:
        _print_lead(summary.get("lead"))
        _print_models(f"{summary['task']} on {summary['data']} (n = {rows[0]['n']})", rows)
    names = ("sparse", "healed", "super_adapter", "search", *EXPORTED, "baselines", "evaluation.json")
    for name in (name for name in names if (folder / name).exists()):
        print_line(f"  {folder / name}")
    exported = [name for name in EXPORTED if name in WHOLE_MODELS and (folder / name).exists()]
    last = rows[-1]["name"] if rows else exported[-1] if exported else ""
    base = next((folder / name for name in ("healed", "sparse") if (folder / name).exists()), folder / "sparse")
    model = folder / last if last in WHOLE_MODELS else base
    sub_adapter = folder / "sub_adapter"
    has_adapter = last in ("", "sparse + sub-adapter") and sub_adapter.exists()
    option = f" --adapter {quoted(sub_adapter)}" if has_adapter else ""
    print_line(f'Try it: shears generate {quoted(model)}{option} --prompt "..."')


def _print_lead(lead: Mapping[str, Any] | None) -> None:
    """Print the difference that a run is about, above its table; for figures that are not paired, both of them."""
    if lead is None:
        return
    untrained = ", which was not trained on the task" if lead["untrained"] else ""
    if (difference := lead["difference"]) is None:
        one, other = (figure({"metric": lead["metric"], "value": value, "ci95": None})[0] for value in lead["values"])
        print_line(f"{lead['name']}: {lead['metric']} {one}, against {other} of {lead['against']}{untrained}.")
    else:
        low, high = (100 * end for end in difference["ci95"])
        print_line(f"{lead['name']} minus {lead['against']}{untrained}:")
        print_line(f"  {100 * difference['value']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}")
        print_line(
            f"  of {difference['n']:,} questions, {difference['won']:,} right only by the first and "
            f"{difference['lost']:,} only by the second"
        )
    if lead["untrained"]:
        print_line("  for a trained one to compare with: --set evaluate.baselines=dense-lora")


def _print_models(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the models of a run: figures, other readings of the answers, sizes, test questions seen in training."""
    readings = [{reading["metric"]: figure(reading)[0] for reading in other_readings(row)} for row in rows]
    others = list(dict.fromkeys(name for row in readings for name in row))
    short = (name.removeprefix("accuracy ") for name in others)
    head = ("model", rows[0]["metric"], "95 % interval", *short, "zeros", "non-zeros", "adapter")
    table = Table(*head, title=Text(title))
    for row, reading in zip(rows, readings, strict=True):
        sizes = (f"{row[key] / 1e6:.1f} M" if row[key] else "-" for key in ("nonzeros", "adapter_parameters"))
        more = (reading.get(name, "-") for name in others)
        table.add_row(row["name"], *figure(row), *more, f"{row['sparsity']:.0%}", *sizes)
    console.print(table)
    for seen in filter(None, (seen_words(row, row["name"]) for row in rows)):
        print_line(seen)
    print_line("zeros: share in the linears of the decoder blocks; non-zeros: in the whole model.")


def print_inspection(data: Mapping[str, Any]) -> None:
    """Print the description of an artifact."""
    print_line(f"{data.get('path')}: {data.get('kind')}")
    for name, value in data.items():
        if name in ("path", "kind") or value is None or isinstance(value, dict | list):
            continue
        print_line(f"  {name}: {_short(name, value)}")
    if data.get("sparsity_by_linear"):
        print_heat_map(data)
    for kind, counts in data.get("types", {}).items():
        sizes = f"{counts['parameters']:,} parameters, {counts['bytes'] / 1e6:,.1f} MB"
        print_line(f"  {kind}: {counts['tensors']} tensors, {sizes}")
    groups = {name: group["ranks"] for name, group in data.get("groups", {}).items()}
    ranks = groups or data.get("ranks") or data.get("chosen", {}).get("ranks", {})
    for kind, words in ranks_by_kind(ranks).items():
        print_line(f"  ranks of {kind}: {words}")
    if "chosen" in data:
        print_line(f"  metrics: {data['chosen']['metrics']}; {len(data['evaluations'])} evaluations")
        print_line(f"  {_front(data)}")
    for row in data.get("models", []):
        print_line(f"  {row['name']}: {row['metric']} {figure(row)[0]} ({figure(row)[1]}, n = {row['n']})")


def print_heat_map(data: Mapping[str, Any]) -> None:
    """Print the share of zeros by layer (rows) and kind of linear (columns); consecutive equal layers share a row.

    Columns that do not fit the width go into another table below.
    """
    rows = {
        layer: {**row, "all": data["sparsity_by_layer"][layer]} for layer, row in data["sparsity_by_linear"].items()
    }
    total = {**data["sparsity_by_kind"], "all": data["sparsity"]}
    labels = max(len("layers"), 2 * max(map(len, rows)) + 1)
    print_line("  share of zeros by layer and kind of linear:")
    widths = {column: max(len(_cell(row.get(column))) for row in (total, *rows.values())) for column in total}
    for columns in _column_groups(widths, console.width - labels):
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("layers", no_wrap=True)
        for column in columns:
            table.add_column(Text(_header(column)), justify="right", no_wrap=True)
        for label, row in _layer_ranges(rows, columns):
            table.add_row(label, *(_cell(row.get(column)) for column in columns))
        table.add_section()
        table.add_row("all", *(_cell(total[column]) for column in columns))
        console.print(table)


def _header(kind: str) -> str:
    """Return a kind of linear with one line for each part of its name."""
    return kind.replace(".", ".\n")


def _column_groups(cells: Mapping[str, int], width: int) -> list[list[str]]:
    """Split the columns, given with the widths of their cells, into groups that fit; at least one column each."""
    groups: list[list[str]] = []
    free = 0
    for column, cell in cells.items():
        needed = max(cell, *map(len, _header(column).split("\n"))) + 1
        if needed > free or not groups:
            groups.append([])
            free = width
        groups[-1].append(column)
        free -= needed
    return groups


def _layer_ranges(
    rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]
) -> list[tuple[str, Mapping[str, float]]]:
    """Return every run of consecutive layers that print alike, as `first-last` with the figures of the first."""
    ranges: list[tuple[str, Mapping[str, float]]] = []
    for _, run in groupby(rows, key=lambda layer: [_percent(rows[layer].get(column)) for column in columns]):
        layers = list(run)
        ranges.append((layers[0] if len(layers) == 1 else f"{layers[0]}-{layers[-1]}", rows[layers[0]]))
    return ranges


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cell(share: float | None) -> Text:
    """Return a share on a background that is darker for more zeros; without colours, with a bar instead."""
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


def print_bench(data: Mapping[str, Any]) -> None:
    """Print speeds, memory and ratios, each with its range over the rounds."""
    threads = f"{data['threads']} thread{'' if data['threads'] == 1 else 's'}"
    table = Table("", "decode", f"prefill {data['prompt_tokens']}", "first token", "memory", title="tokens per second")
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
    print_line(f"figures: median of {data['rounds']} rounds, with the minimum and maximum below it")
    print_line("first token: after a prompt of 64 tokens; memory: weights and our caches, without Python")


def print_environment(data: Mapping[str, Any]) -> None:
    """Print versions, processor, the speed of the kernels, the walks that they take, and warnings."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    print_line(f"{data['processor']} ({data['machine']}, {data['processors']} processors)")
    print_line(versions)
    if data["extension"]:
        sets = data["instruction_sets"]
        here = ", ".join(words for name, words in INSTRUCTION_SETS.items() if sets[name])
        print_line(f"kernels: {INSTRUCTION_SETS[sets['isa']]} in use of {here}")
        speeds = Table("values", "weights", "threads", "ps per weight", "GB/s", "of reading memory")
        for row in data["speeds"]:
            figures = (f"{row['ps_per_weight']:.1f}", f"{row['gb_per_s']:.1f}", f"{row['of_memory']:.0%}")
            speeds.add_row(row["values"], "sparse" if row["sparse"] else "dense", str(row["threads"]), *figures)
        console.print(speeds)
        print_line("one token by a weight in memory, half of it zeros where it is sparse; pruned weights count")
        for kind, walks in data["walks"].items():
            print_line(f"{kind}, 1 token: {walks['1']}")
    for warning in data["warnings"]:
        print_line(f"warning: {warning}")


def _spread(spread: Mapping[str, float], digits: int, unit: str = "") -> str:
    middle, low, high = (f"{spread[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle}{unit}\n{low} to {high}"


def print_plan(plan: "RunPlan") -> None:
    """Print the plan of a run."""
    size = f"{plan.parameters / 1e6:,.1f} M weights" if plan.parameters else "size unknown before the download"
    table = Table("stage", "state", "work", "memory", "disk", title=Text(f"{plan.model}, {size}"))
    for stage in plan.stages:
        table.add_row(stage.name, stage.state, Text(stage.work), _bytes(stage.memory), _bytes(stage.disk))
    console.print(table)
    print_line(f"memory: without the activations of a forward pass; disk: files that stay in {plan.folder}")


def print_candidates(record: Mapping[str, Any]) -> None:
    """Print the candidates of `compress` with what is predicted of them, those that should meet the target first."""
    size = f"{record['parameters'] / 1e6:,.1f} M weights"
    title = Text(f"{record['model']}, {size}, {record['target']}")
    table = Table("candidate", "size", "bits a weight", "tokens/s", "loss added", "meets", title=title)
    for each in record["candidates"]:
        speed = _number(each["tokens_per_second"], ".1f")
        loss = _number(each["added_loss"], "+.4f")
        bits = f"{each['bits_per_weight']:.2f}"
        table.add_row(each["name"], f"{each['bytes'] / 1e9:.4f} GB", bits, speed, loss, "yes" if each["meets"] else "")
    console.print(table)
    print_line(f"predicted; s50-int4-int8: 50% zeros, int4 weights, int8 embeddings; order: {record['order']}")


def print_costs(record: Mapping[str, Any]) -> None:
    """Print what the stages of the first candidate would cost."""
    table = Table("stage", "work", "time", "memory", "disk", title=Text(f"{record['candidates'][0]['name']}, first"))
    for stage in record["stages"]:
        seconds = stage["seconds"]
        took = "unknown" if seconds is None else "-" if not seconds else f"{seconds / 60:.1f} min"
        table.add_row(stage["name"], Text(stage["work"]), took, _bytes(stage["memory"]), _bytes(stage["disk"]))
    console.print(table)
    print_line("time: of the forward and backward passes, at the speed of the dense model that was timed here")


def print_compressed(record: Mapping[str, Any]) -> None:
    """Print the measured candidates beside the dense model and the files that the user compares with."""
    table = Table("package", "size", "bits a weight", "tokens/s", "loss", "meets", title="measured")
    dense = record["dense"]
    weights = record["parameters"]
    rows = [
        {**dense, "name": "dense (speed in bf16)", "loss": dense["held_out_loss"]},
        *record["measured"],
        *({**rival, "name": Path(rival["file"]).name} for rival in record["rivals"]),
    ]
    for row in rows:
        figures = (_number(row["tokens_per_second"], ".1f"), _number(row["loss"], ".4f"))
        bits = f"{8 * row['bytes'] / weights:.2f}"
        meets = "" if row.get("holds") is None else "yes" if row["holds"] else "no"
        table.add_row(Text(row["name"]), f"{row['bytes'] / 1e9:.4f} GB", bits, *figures, meets)
    console.print(table)


def verdict_line(record: Mapping[str, Any], folder: str | Path) -> str:
    """Return in one sentence whether a measured package meets the target, and where it is."""
    measured = {row["name"]: row for row in record["measured"]}
    report = f"shears report {quoted(folder)}"
    if record["chosen"] is None:
        return (
            f"no package meets the target ({record['target']}) after {len(measured)} attempts; try more --attempts, "
            f"--heal or a looser target. Next: {report}"
        )
    row = measured[record["chosen"]]
    figures = f"{row['bytes'] / 1e9:.4g} GB, {row['bits_per_weight']:.2f} bits a weight"
    speed = f"{row['tokens_per_second']:.1f} tokens/s"
    losses = f"loss {row['loss']:.4f} against {record['dense']['held_out_loss']:.4f} of the dense model"
    path = Path(folder) / row["package"]
    return f"{path} meets the target ({record['target']}): {figures}, {speed}, {losses}. Next: {report}"


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return "-" if size == 0 else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def print_files(title: str, files: Sequence[tuple[str, int]]) -> None:
    """Print files with their sizes."""
    table = Table("file", "bytes", title=title)
    for name, size in files:
        table.add_row(Text(name), f"{size:,}")
    console.print(table)
    print_line(f"{len(files)} files, {sum(size for _, size in files):,} bytes")
