"""The tables and lines that the verbs print, at most 80 columns wide."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shears.config.export import FORMATS
from shears.progress import VisibleConsole, is_first_process
from shears.records.artifacts import PACKAGE, WRITTEN_TEXT, find_record, read_json
from shears.records.figures import (
    answered_words,
    cut_at_ranks,
    cut_words,
    is_share,
    other_readings,
    packages_of,
    ranks_by_kind,
    seen_words,
)
from shears.records.folders import free_bytes
from shears.records.trained_form import UNKNOWN, trained_form

if TYPE_CHECKING:
    from shears.runs.plan import RunPlan

console = VisibleConsole(quiet=not is_first_process())

INSTRUCTION_SETS = ("amx", "avx512", "avx2", "neon_dot", "neon", "portable")  # of the kernels, the fastest first
BARS = " ▁▂▃▄▅▆▇█"
EXPORTED = dict.fromkeys(form.folder for form in FORMATS.values())
WHOLE_MODELS = {form.folder for form in FORMATS.values() if form.is_model}
FEW_ZEROS = (247, 251, 255)  # near white: red, green and blue of a cell's background
ALL_ZEROS = (8, 48, 107)  # dark blue


def print_line(text: str) -> None:
    """Print one line of text, without markup and without wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_data(data: Mapping[str, Any], as_json: bool, print_text: Callable[[Mapping[str, Any]], None]) -> None:
    """Print data as JSON, or as text by a function."""
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        print_text(data)


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    total: Sequence[object] = (),
    unbroken: Sequence[str] = (),
) -> None:
    """Print a table, its texts as they are and not as markup.

    The total stands below a line; the columns named in `unbroken` are never wrapped.
    """
    table = Table(title=Text(title, "italic") if title else None)
    for name in head:
        table.add_column(name, no_wrap=name in unbroken)
    for row in rows:
        table.add_row(*map(_as_text, row))
    if total:
        table.add_section()
        table.add_row(*map(_as_text, total))
    console.print(table)


def _as_text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def quoted(path: str | Path) -> str:
    """Return a path quoted for a shell, for commands that people copy."""
    return shlex.quote(str(path))


def written_line(file: Path) -> str:
    """Return how much text a model wrote, and of answers how many are right, as a sentence."""
    record = read_json(file.with_name(WRITTEN_TEXT))
    kept = f"{record['num_tokens']:,} tokens, {record['num_texts']:,} texts"
    if "prompts" not in record:
        return f"{kept}, {record['num_chats']:,} of them chats"
    about = f"{record['num_right']:,} right, {record['num_cut']:,} cut, {record['num_empty']:,} empty"
    return f"{kept} kept of {record['num_answers']:,} answers: {about}"


def sparsity_line(folder: Path) -> str:
    """Return the sparsity of a pruned or healed model as a sentence."""
    path = find_record(folder)
    assert path is not None, folder
    linears = read_json(path)["linears"].values()
    zeros = sum(linear["zeros"] for linear in linears)
    size = sum(linear["shape"][0] * linear["shape"][1] for linear in linears)
    return f"{zeros / size:.2%} of the {size / 1e6:.1f} M weights of {len(linears)} linears are zero"


def package_line(folder: Path) -> str:
    """Return the size of a package as a sentence."""
    record = read_json(folder / PACKAGE)
    sizes = {
        part: f"{record['bytes'][part] / 1e6:.1f} MB ({record['ratio'][part]:.3f} of dense)"
        for part in ("linears", "model")
    }
    return (
        f"{record['num_linears']} linears packed as {record['values']}, {record['sparsity']:.1%} zeros, "
        f"{sizes['linears']}; the file {sizes['model']}"
    )


def figure(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return a figure and its interval as text.

    Shares are in percent; perplexities have two decimals, other figures four digits.
    """
    metric = data["metric"]
    form = ".1%" if is_share(metric) else ".2f" if re.search("perplexity|bits_per", metric) else ".4g"
    interval = " to ".join(f"{end:{form}}" for end in data["ci95"]) if data["ci95"] else "unknown"
    return f"{data['value']:{form}}", interval


def print_evaluation(title: str, data: Mapping[str, Any]) -> None:
    """Print one evaluation with other readings of its answers, or with the figures of each task."""
    figures = data.get("figures") or [data, *other_readings(data)]
    rows = [(row["task"], row["metric"], *figure(row), f"{row['n']:,}") for row in figures]
    has_tasks = len({row["task"] for row in data.get("figures", [])}) > 1
    mean = ("mean of the tasks", data["metric"], *figure(data), f"{data['n']:,}") if has_tasks else ()
    print_table(("task", "metric", "value", "95 % interval", "n"), rows, title, mean)
    if curve := data.get("curve"):
        _print_curve(curve)
    for words in filter(None, ("" if curve else cut_words([data]), seen_words(data))):
        print_line(words)


def _print_curve(curve: Mapping[str, Any]) -> None:
    """Print the accuracy at every rank, its difference to the largest rank, and the area below."""
    rows = []
    for point in curve["points"]:
        gap = point["difference"]
        difference = f"{points(gap)} ({points(gap, 'ci95')})" if gap else ""
        value, interval = figure({**point, "metric": "accuracy"})
        p = f"{gap['p_holm']:.3f}" if gap else ""
        rows.append((point["rank"], f"{point['parameters']:,}", value, interval, difference, p))
    difference = "minus the largest, points"
    print_table(("rank", "parameters", "accuracy", "95 % interval", difference, "p, Holm"), rows)
    low, high = curve["aurac_ci95"]
    area = f"{curve['aurac']:.1%} ({low:.1%} to {high:.1%})"
    print_line(f"area under the curve (AURAC) {area}, {len(curve['points'])} ranks")
    if words := cut_at_ranks(curve):
        print_line(words)


def points(difference: Mapping[str, Any], key: str = "value") -> str:
    """Return a difference of shares, or the ends of its interval, in points."""
    ends = difference[key] if key == "ci95" else [difference[key]]
    return " to ".join(f"{100 * end:+.1f}" for end in ends)


def print_search(path: Path) -> None:
    """Print the configuration that a search chose beside the heuristic, evaluated first."""
    result = read_json(path)
    evaluations = result["evaluations"]
    chosen = result["chosen"]["metrics"]
    rows = [
        (name, *(_search_figure(metrics.get(column)) for column in chosen))
        for name, metrics in (("first", evaluations[0]["metrics"]), ("chosen", chosen))
    ]
    print_table(("configuration", *chosen), rows, f"{len(evaluations)} configurations evaluated")
    if gain := result.get("gain"):
        test = gain["test"]
        ends = test["ci95"]
        interval = "{:+.3g} to {:+.3g}, 95 %".format(*ends) if ends else "interval unknown"
        both = f"chosen {test['chosen']:.4g}, heuristic {test['heuristic']:.4g}"
        difference = f"difference {test['difference']:+.3g} ({interval})"
        print_line(f"{gain['figure']} on {test['n']} test examples: {both}, {difference}")
        for note in gain["notes"]:
            print_line(f"  {note}")
    print_line(f"{path}: {_front(result)}.")


def _search_figure(value: int | float | None) -> str:
    """Return a figure of a search; quality is not measured where a bound on a size is missed."""
    return "not measured" if value is None else f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}"


def _front(result: Mapping[str, Any]) -> str:
    """Return the size of the Pareto front and its objectives in words."""
    bounds = f" with {' and '.join(result['constraints'])}" if result.get("constraints") else ""
    front = f"{len(result['pareto'])} configurations on the Pareto front"
    return f"{front} of {' and '.join(result.get('objectives', ['quality', 'parameters']))}{bounds}"


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the figures of a run's models, its artifacts, and a command to try the last model."""
    rows = summary["models"]
    if rows:
        _print_lead(summary.get("lead"))
        _print_models(f"{summary['task']} on {summary['data']} (n = {rows[0]['n']})", rows)
    names = ("sparse", "healed", "super_adapter", "search", *EXPORTED, "baselines", "evaluation.json")
    there = [name for name in names if (folder / name).exists()]
    for name in there:
        print_line(f"  {folder / name}")
    exported = [name for name in there if name in WHOLE_MODELS]
    last = rows[-1]["name"] if rows else exported[-1] if exported else ""
    base = "healed" if "healed" in there else "sparse"
    has_adapter = last in ("", "sparse + sub-adapter") and "sub_adapter" in there
    option = f" --adapter {quoted(folder / 'sub_adapter')}" if has_adapter else ""
    tried = folder / (last if last in WHOLE_MODELS else base)
    form = trained_form(folder / "sub_adapter" if has_adapter else None, tried)
    model = f"{quoted(tried)}{option}"
    print_line(f"Try it: shears {(form or UNKNOWN).ask(model)}")


def _print_lead(lead: Mapping[str, Any] | None) -> None:
    """Print the difference that a run is about; for figures that are not paired, both figures."""
    if lead is None:
        return
    untrained = ", which was not trained on the task" if lead["untrained"] else ""
    if (difference := lead["difference"]) is None:
        both = [{"metric": lead["metric"], "value": value, "ci95": None} for value in lead["values"]]
        one, other = (figure(each)[0] for each in both)
        against = f"{lead['against']}{untrained}"
        print_line(f"{lead['name']}: {lead['metric']} {one}, against {other} of {against}.")
    else:
        print_line(f"{lead['name']} minus {lead['against']}{untrained}:")
        print_line(f"  {points(difference)} points, 95 % interval {points(difference, 'ci95')}")
        won = f"{difference['won']:,} right only by the first"
        lost = f"{difference['lost']:,} only by the second"
        print_line(f"  of {difference['n']:,} questions, {won} and {lost}")
    if lead["untrained"]:
        print_line("  for a trained one to compare with: --set evaluate.baselines=dense-lora")


def _print_models(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the models of a run: figures, other readings, sizes, questions seen in training."""
    readings = [{each["metric"]: figure(each)[0] for each in other_readings(row)} for row in rows]
    others = list(dict.fromkeys(name for row in readings for name in row))
    cells = []
    for row, reading in zip(rows, readings, strict=True):
        counts = (row["nonzeros"], row["adapter_parameters"])
        sizes = (f"{count / 1e6:.1f} M" if count else "-" for count in counts)
        more = (reading.get(name, "-") for name in others)
        cells.append((row["name"], *figure(row), *more, f"{row['sparsity']:.0%}", *sizes))
    short = (name.removeprefix("accuracy ") for name in others)
    head = ("model", rows[0]["metric"], "95 % interval", *short, "zeros", "non-zeros", "adapter")
    print_table(head, cells, title)
    for words in filter(None, (cut_words(rows), *(seen_words(row, row["name"]) for row in rows))):
        print_line(words)
    print_line("zeros: share in the linears of the decoder blocks; non-zeros: in the whole model.")


def print_inspection(data: Mapping[str, Any]) -> None:
    """Print the description of an artifact."""
    print_line(f"{data.get('path')}: {data.get('kind')}")
    for name, value in data.items():
        is_shown = value is not None and not isinstance(value, dict | list)
        if is_shown and name not in ("path", "kind"):
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
        evaluations = f"{len(data['evaluations'])} evaluations"
        print_line(f"  metrics: {data['chosen']['metrics']}; {evaluations}")
        print_line(f"  {_front(data)}")
    for row in data.get("models", []):
        value, interval = figure(row)
        print_line(f"  {row['name']}: {row['metric']} {value} ({interval}, n = {row['n']})")


def _short(name: str, value: Any) -> str:
    """Return a value of a record, with the unit that its name says."""
    if name == "size_bytes":
        return f"{value / 1e6:,.1f} MB"
    if name.endswith(("fingerprint", "_sha256")) and value:
        return str(value)[:16]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


Shares = Mapping[str, float]  # of zeros, by kind of linear


def print_heat_map(data: Mapping[str, Any]) -> None:
    """Print the share of zeros by layer (rows) and kind of linear (columns).

    Consecutive equal layers share a row. Columns beyond the width go into another table below.
    """
    means = data["sparsity_by_layer"]
    rows = {layer: {**row, "all": means[layer]} for layer, row in data["sparsity_by_linear"].items()}
    total = {**data["sparsity_by_kind"], "all": data["sparsity"]}
    labels = max(len("layers"), 2 * max(map(len, rows)) + 1)
    widths = {}  # of columns: of their cells, and of the parts of their names, each on a line
    for kind in total:
        cells = [_cell(row.get(kind)) for row in (total, *rows.values())]
        widths[kind] = max(map(len, [*cells, *kind.replace(".", ".\n").split("\n")])) + 1
    print_line("  share of zeros by layer and kind of linear:")
    for kinds in _column_groups(widths, console.width - labels):
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("layers", no_wrap=True)
        for kind in kinds:
            table.add_column(Text(kind.replace(".", ".\n")), justify="right", no_wrap=True)
        for label, row in _layer_ranges(rows, kinds):
            table.add_row(label, *(_cell(row.get(kind)) for kind in kinds))
        table.add_section()
        table.add_row("all", *(_cell(total[kind]) for kind in kinds))
        console.print(table)


def _column_groups(widths: Mapping[str, int], width: int) -> list[list[str]]:
    """Split the columns into groups that fit into a width, of at least one column each."""
    groups: list[list[str]] = []
    free = 0
    for column, needed in widths.items():
        if needed > free or not groups:
            groups.append([])
            free = width
        groups[-1].append(column)
        free -= needed
    return groups


def _layer_ranges(rows: Mapping[str, Shares], kinds: Sequence[str]) -> list[tuple[str, Shares]]:
    """Return the runs of layers that print alike: `first-last`, and the shares of the first."""
    ranges = []
    printed = {layer: [_percent(row.get(kind)) for kind in kinds] for layer, row in rows.items()}
    for _, run in groupby(rows, key=printed.__getitem__):
        first, *others = run
        ranges.append((f"{first}-{others[-1]}" if others else first, rows[first]))
    return ranges


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _cell(share: float | None) -> Text:
    """Return a share on a background that darkens with it; without colours, beside a bar."""
    if share is None:
        return Text("")
    if console.no_color or console.color_system is None:
        bar = "" if console.options.ascii_only else BARS[round(share * (len(BARS) - 1))]
        return Text(bar + _percent(share))
    ends = zip(FEW_ZEROS, ALL_ZEROS, strict=True)
    red, green, blue = (round(low + share * (high - low)) for low, high in ends)
    style = Style(color="white" if share > 0.5 else "black", bgcolor=f"rgb({red},{green},{blue})")
    return Text(_percent(share), style)


def print_bench(data: Mapping[str, Any]) -> None:
    """Print speeds, memory and ratios, each with its range over the rounds."""
    rows = []
    for row in data["contestants"]:
        speeds = (_spread(row[f"{kind}_tokens_per_second"], 0) for kind in ("decode", "prefill"))
        seconds = row["time_to_first_token_seconds"].items()
        first = _spread({key: 1000 * value for key, value in seconds}, 0, " ms")
        rows.append((row["name"], *speeds, first, f"{row['memory_bytes'] / 1e6:,.0f} MB"))
    prefill = f"prefill {data['prompt_tokens']}"
    print_table(("", "decode", prefill, "first token", "memory"), rows, "tokens per second")
    dense = {row["name"]: row["memory_bytes"] for row in data["contestants"]}
    ratios = []
    for row in data["ratios"]:
        times = (_spread(row[key], 2) for key in ("decode", "prefill", "first_token"))
        share = data["memory_bytes"] / dense[row["over"]]
        ratios.append((row["over"], *times, f"{share:.2f} of it"))
    head = ("the package over", "decode", "prefill", "first token", "memory")
    print_table(head, ratios, "times as fast")
    print_line(f"{data['cpu']}, {data['threads']} thread{'s' * (data['threads'] != 1)}")
    print_line(f"figures: median of {data['rounds']} rounds, with the minimum and maximum below it")
    print_line("first token: after a prompt of 64 tokens; memory: weights and our caches, without Python")


def _spread(spread: Mapping[str, float], digits: int, unit: str = "") -> str:
    middle, low, high = (f"{spread[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle}{unit}\n{low} to {high}"


def print_environment(data: Mapping[str, Any]) -> None:
    """Print versions, processor, and the speed of the kernels."""
    print_line(f"{data['processor']} ({data['machine']}, {data['threads']} threads)")
    print_line(", ".join(f"{name} {version}" for name, version in data["versions"].items()))
    if not data["speeds"]:
        print_line("the C++ kernels were not built; install a C++ compiler, then install shears again")
        return
    here = ", ".join(name for name in INSTRUCTION_SETS if data["instruction_sets"][name])
    print_line(f"kernels: {data['instruction_sets']['isa']} in use of {here}")
    rows = [(row["values"], f"{row['sparse']:.1f}", f"{row['dense']:.1f}") for row in data["speeds"]]
    print_table(("ps per weight", "sparse", "dense"), rows)
    print_line("one token by a weight in memory; sparse: half of it zeros, which count as weights")
    print_line("SHEARS_TUNING=again measures the kernels' walks anew on an idle machine")


def print_plan(plan: "RunPlan") -> None:
    """Print the plan of a run."""
    size = f"{plan.parameters / 1e6:,.1f} M weights" if plan.parameters else "size unknown"
    rows = []
    for stage in plan.stages:
        rows.append((stage.name, stage.state, stage.work, _bytes(stage.memory), _bytes(stage.disk)))
    print_table(("stage", "state", "work", "memory", "disk"), rows, f"{plan.model}, {size}")
    print_line(f"memory: without activations; disk: files that stay in {plan.folder}")
    print_line(f"{_bytes(plan.bytes_to_write)} to write, {_bytes(free_bytes(plan.folder))} free there")


def print_candidates(record: Mapping[str, Any]) -> None:
    """Print the candidates of `compress` as predicted, those that should meet the target first."""
    rows = []
    for each in record["candidates"]:
        size = (f"{each['bytes'] / 1e9:.4f} GB", f"{each['bits_per_weight']:.2f}")
        figures = (_number(each["tokens_per_second"], ".1f"), _number(each["added_loss"], "+.4f"))
        rows.append((each["name"], *size, *figures, "yes" if each["meets"] else ""))
    head = ("candidate", "size", "bits a weight", "tokens/s", "loss added", "meets")
    title = f"{record['model']}, {record['parameters'] / 1e6:,.1f} M weights, {record['target']}"
    print_table(head, rows, title)
    example = "s50-int4-int8: 50% zeros, int4 weights, int8 embeddings"
    print_line(f"predicted; {example}; order: {record['order']}")


def print_costs(record: Mapping[str, Any]) -> None:
    """Print the plan: what each stage does and costs, and what the other efforts would take."""
    rows = []
    for stage in record["stages"]:
        sizes = (_bytes(stage["memory"]), _bytes(stage["disk"]))
        rows.append((stage["name"], stage["work"], _minutes(stage["seconds"]), *sizes))
    first = next(each for each in record["candidates"] if each["name"] == record["first"])
    total = sum(stage["seconds"] or 0.0 for stage in record["stages"])
    whole = f", {_minutes(total)} in all" if record["efforts"] else ""
    head = ("stage", "what it does", "minutes", "memory", "disk")
    print_table(head, rows, f"plan {record['effort']['name']}: {first['name']} first{whole}")
    speed = _number(first["tokens_per_second"], ".1f")
    print_line(f"{first['name']}, predicted: {first['bytes'] / 1e9:.4f} GB, {speed} tokens/s")
    if record["efforts"]:
        told = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in record["efforts"].items())
        print_line(f"minutes: {told}; --time takes one of these names, or a time such as 2h")


def print_times(record: Mapping[str, Any], real: Mapping[str, float]) -> None:
    """Print the planned and the real minutes of every stage; a stage that was made before took none."""
    planned = {stage["name"]: stage["seconds"] for stage in record.get("stages", []) if stage["seconds"] is not None}
    if not planned:
        return
    rows = [(name, _minutes(seconds), _minutes(real.get(name))) for name, seconds in planned.items()]
    rows.append(("all", _minutes(sum(planned.values())), _minutes(sum(real.values()))))
    print_table(("stage", "minutes planned", "real"), rows, f"plan {record['effort']['name']}")


def _minutes(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds / 60:.1f}"


def print_compressed(record: Mapping[str, Any]) -> None:
    """Print the measured candidates beside the dense models."""
    dense = record["dense"]
    taught = record.get("teacher")
    measured: list[Mapping[str, Any]] = [
        {**dense, "name": "dense, as it came (speed in bf16)", "loss": dense["held_out_loss"]}
    ]
    if taught is not None and taught["answers"] is not None:
        measured.append({**dense, "name": "dense, fine-tuned", "loss": None, "answers": taught["answers"]})
    measured += packages_of(record)
    answered = dense.get("answers") is not None
    rows = []
    for row in measured:
        size = (f"{row['bytes'] / 1e9:.4f} GB", f"{8 * row['bytes'] / record['parameters']:.2f}")
        figures = (_number(row["tokens_per_second"], ".1f"), _number(row["loss"], ".4f"))
        meets = "" if row.get("holds") is None else "yes" if row["holds"] else "no"
        rows.append((row["name"], *size, *figures, *([answered_words(row["answers"])] if answered else []), meets))
    head = ("package", "size", "bits a weight", "tokens/s", "loss", *(["right answers"] if answered else []), "meets")
    print_table(head, rows, "measured")


def verdict_line(record: Mapping[str, Any], folder: str | Path) -> str:
    """Return in one sentence whether a measured package meets the target, and where it is."""
    row = _chosen(record)
    if row is None:
        tried = f"no package meets the target ({record['target']}) after {len(record['measured'])} attempts"
        return f"{tried}; try more --attempts, more --time or a looser target"
    figures = f"{row['bytes'] / 1e9:.4g} GB, {row['bits_per_weight']:.2f} bits a weight"
    speed = f"{row['tokens_per_second']:.1f} tokens/s"
    dense = record["dense"]["held_out_loss"]
    losses = f"loss {row['loss']:.4f} against {dense:.4f} of the dense model"
    path = Path(folder) / row["package"]
    verdict = f"{path} meets the target ({record['target']}): {figures}, {speed}, {losses}"
    return f"{_better_dense(record, row)}{verdict}"


def next_lines(record: Mapping[str, Any], folder: str | Path) -> list[str]:
    """Return the commands that use the chosen package; none without one."""
    row = _chosen(record)
    if row is None:
        return []
    package = quoted(Path(folder) / row["package"])
    lines = [f"Next: shears chat {package}", f"Next: shears serve {package}"]
    if row["answers"] is not None:
        held_out = quoted(Path(folder) / record["held_out"])
        lines.insert(0, f"Next: shears write {package} answers --prompts {held_out}")
    return lines


def _chosen(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((row for row in packages_of(record) if row["name"] == record["chosen"]), None)


def _better_dense(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return the sentence that a dense model answers more rows; empty if none does, or none was asked."""
    if row.get("answers") is None:
        return ""
    others = {"the model as it came": record["dense"]["answers"]}
    if (taught := record.get("teacher")) is not None and taught["answers"] is not None:
        others[f"the dense model fine-tuned ({taught['name']})"] = taught["answers"]
    if (rival := record.get("rival")) is not None:
        others[f"dense int4 ({rival['package']})"] = rival["answers"]
    right = row["answers"]["right"]
    told = [  # the model as it came may have been asked fewer rows, the first ones
        f"{name} ({answered_words(each)})"
        for name, each in others.items()
        if each["right"].count("1") > right[: each["n"]].count("1")
    ]
    if not told:
        return ""
    verb = "answers" if len(told) == 1 else "answer"
    return f"Keep the dense one where its size will do: {' and '.join(told)} {verb} more of the same rows. "


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return "-" if size == 0 else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
