"""The tables and lines that the verbs print."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from shears.config.export_options import FORMATS
from shears.data.forms import UNKNOWN, trained_form
from shears.progress import VisibleConsole, is_first_process
from shears.records import figures
from shears.records.artifacts import PACKAGE, WRITTEN_TEXT, find_record, read_json
from shears.records.figures import cell, figure, interval, ranks_by_kind, ranks_of, size, table_rows
from shears.records.folders import free_bytes

if TYPE_CHECKING:
    from shears.runs.plan import RunPlan

console = VisibleConsole(quiet=not is_first_process())

INSTRUCTION_SETS = ("amx", "avx512", "avx2", "neon_dot", "neon", "portable")  # fastest first
WHOLE_MODELS = {form.folder for form in FORMATS.values() if form.is_model}
STAGES = {"name": "stage", "state": "state", "work": "work", "hours": "hours", "memory": "memory", "disk": "disk"}
COSTS = {"name": "stage", "work": "what it does", "seconds": "minutes", "memory": "memory", "disk": "disk"}
SHOWN = 4  # packages of a plan that should meet the target, and as many others
LONGEST = 2_000  # characters of a part of a row that are shown
REFUSED = 3  # reasons that are shown
COLUMNS = 8  # kinds of linears side by side: as many as 80 characters hold

Record = Mapping[str, Any]


def print_line(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_data(data: Record, as_json: bool, print_text: Callable[[Record], None]) -> None:
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        print_text(data)


def print_rows(rows: Sequence[Mapping[str, object]], title: str = "") -> None:
    """Print a table with a column for every key; texts are printed as they are, not as markup."""
    table = Table(title=Text(title, "italic") if title else None)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text(str(row.get(name, ""))) for name in columns))
    console.print(table)


def quoted(path: str | Path) -> str:
    return shlex.quote(str(path))


def written_line(file: Path) -> str:
    record = read_json(file.with_name(WRITTEN_TEXT))
    texts, tokens = f"{record['num_texts']:,}", f"{record['num_tokens']:,} tokens"
    if "prompts" not in record:
        return f"{texts} texts with {tokens}; {record['num_chats']:,} of the texts are chats"
    about = f"{record['num_right']:,} are right, {record['num_cut']:,} were cut, {record['num_empty']:,} are empty"
    return f"kept {texts} of {record['num_answers']:,} answers, with {tokens}; {about}"


def sparsity_line(folder: Path) -> str:
    path = find_record(folder)
    assert path is not None, folder
    linears = read_json(path)["linears"].values()
    zeros = sum(linear["zeros"] for linear in linears)
    weights = sum(linear["shape"][0] * linear["shape"][1] for linear in linears)
    return f"{zeros / weights:.2%} of the {weights / 1e6:.1f} M weights of {len(linears)} linears are zero"


def package_line(folder: Path) -> str:
    record = read_json(folder / PACKAGE)
    packed = f"{record['num_linears']} linears packed as {record['values']} with {record['sparsity']:.1%} zeros"
    return f"{packed}; {record['bytes']['model'] / 1e6:.1f} MB, {record['ratio']['model']:.3f} of the dense size"


def print_evaluation(title: str, data: Record) -> None:
    tasks = data.get("figures") or [data, *figures.other_readings(data)]
    if len({each["task"] for each in tasks}) > 1:
        tasks = [*tasks, {**data, "task": "mean of the tasks"}]
    rows = [
        {
            "task": each["task"],
            "metric": each["metric"],
            "value": figure(each["metric"], each["value"]),
            "95 % interval": interval(each),
            "n": f"{each['n']:,}",
        }
        for each in tasks
    ]
    print_rows(rows, title)
    for words in figures.remarks([data]):
        print_line(words)


def print_search(path: Path) -> None:
    result = read_json(path)
    chosen = result["chosen"]["metrics"]
    both = {"heuristic": result["evaluations"][0]["metrics"], "chosen": chosen}
    rows = [
        {"configuration": name, **{key: figure(key, each[key]) for key in chosen if key in each}}
        for name, each in both.items()
    ]
    print_rows(rows, f"{len(result['evaluations'])} configurations evaluated")
    if gain := result.get("gain"):
        test = gain["test"]
        ends = "95 % interval {:+.3g} to {:+.3g}".format(*test["ci95"]) if test["ci95"] else "interval unknown"
        compared = f"{test['chosen']:.4g} with the chosen ranks, {test['heuristic']:.4g} with the heuristic's"
        difference = f"difference {test['difference']:+.3g} ({ends})"
        print_line(f"{gain['figure']} on {test['n']} test examples: {compared}; {difference}")
        for note in gain["notes"]:
            print_line(f"  {note}")
    print_line(f"{path} has {_front(result)}.")


def _front(result: Record) -> str:
    objectives = " and ".join(result.get("objectives") or result["chosen"]["metrics"])
    bounds = f" with {' and '.join(result['constraints'])}" if result.get("constraints") else ""
    count = len(result["pareto"])
    return f"{count} configuration{'s' * (count != 1)} on the Pareto front of {objectives}{bounds}"


def print_summary(summary: Record, folder: Path) -> None:
    models = summary["models"]
    if models:
        for words in figures.lead_lines(summary.get("lead")):
            print_line(words)
        print_rows(figures.model_rows(models), f"{summary['task']} on {summary['data']} (n = {models[0]['n']})")
        for words in figures.remarks(models):
            print_line(words)
        print_line("zeros is the share of zeros in the linears of the decoder blocks.")
        print_line("non-zeros counts the weights of the whole model that are not zero.")
    exports = dict.fromkeys(form.folder for form in FORMATS.values())
    there = [name for name in ("sparse", "healed", *exports) if (folder / name).exists()]
    last = models[-1]["name"] if models else next((name for name in reversed(there) if name in WHOLE_MODELS), "")
    adapter = folder / "sub_adapter" if last in ("", "sparse + sub-adapter") and "sub_adapter" in there else None
    tried = folder / (last if last in WHOLE_MODELS else "healed" if "healed" in there else "sparse")
    option = f" --adapter {quoted(adapter)}" if adapter is not None else ""
    print_line(f"Try it: shears {(trained_form(adapter, tried) or UNKNOWN).ask(f'{quoted(tried)}{option}')}")


def print_inspection(data: Record) -> None:
    print_line(f"{data.get('path')}: {data.get('kind')}")
    for name, value in data.items():
        if not isinstance(value, dict | list | None) and name not in ("path", "kind"):
            print_line(f"  {name}: {cell(name, value)}")
    if layers := data.get("sparsity_by_linear"):
        print_line("  share of zeros by layer and kind of linear:")
        means = data["sparsity_by_layer"]
        shares = {layer: {**row, "all": means[layer]} for layer, row in layers.items()}
        _print_map(shares, {**data["sparsity_by_kind"], "all": data["sparsity"]})
    for kind, counts in data.get("types", {}).items():
        sizes = f"{counts['parameters']:,} parameters, {size(counts['bytes'])}"
        print_line(f"  {kind}: {counts['tensors']} tensors, {sizes}")
    for kind, words in ranks_by_kind(ranks_of(data)).items():
        print_line(f"  ranks of {kind}: {words}")
    if "chosen" in data:
        print_line(f"  metrics: {data['chosen']['metrics']}; {len(data['evaluations'])} evaluations")
        print_line(f"  {_front(data)}")
    for row in data.get("models", []):
        value = figure(row["metric"], row["value"])
        print_line(f"  {row['name']}: {row['metric']} {value} ({interval(row)}, n = {row['n']})")


def _print_map(shares: Mapping[str, Mapping[str, float]], total: Mapping[str, float]) -> None:
    """Print the share of zeros by layer and kind of linear; equal adjacent layers share a row."""
    kinds = list(total)
    for first in range(0, len(kinds), COLUMNS):
        part = kinds[first : first + COLUMNS]
        cells = {layer: {kind: f"{row[kind]:.1%}" for kind in part if kind in row} for layer, row in shares.items()}
        rows = []
        for _, run in groupby(cells, key=cells.__getitem__):
            layer, *others = run
            rows.append({"layers": f"{layer}-{others[-1]}" if others else layer, **cells[layer]})
        print_rows([*rows, {"layers": "all", **{kind: f"{total[kind]:.1%}" for kind in part}}])


def print_bench(data: Record) -> None:
    print_rows(table_rows(data["contestants"], figures.BENCH), "tokens per second")
    print_rows(table_rows(data["ratios"], figures.RATIOS), "times as fast")
    print_line(f"{data['cpu']}, {data['threads']} thread{'s' * (data['threads'] != 1)}")
    print_line(f"Values are the median of {data['rounds']} rounds (minimum to maximum).")
    print_line("The first token follows a prompt of 64 tokens. Memory counts weights and caches, not Python.")


def print_environment(data: Record) -> None:
    print_line(f"{data['processor']} ({data['machine']}, {data['threads']} threads)")
    print_line(", ".join(f"{name} {version}" for name, version in data["versions"].items()))
    if not data["speeds"]:
        print_line("The C++ kernels were not built. Install a C++ compiler and reinstall shears.")
        return
    here = ", ".join(name for name in INSTRUCTION_SETS if data["instruction_sets"][name])
    print_line(f"kernels: use {data['instruction_sets']['isa']}; this processor has {here}")
    print_rows(table_rows(data["speeds"], {"values": "ps per weight", "sparse": "sparse", "dense": "dense"}))
    print_line("ps per weight: picoseconds per weight to multiply one token by a matrix in memory.")
    print_line("Half of a sparse matrix is zeros, which are counted as weights.")
    print_line("On an idle machine, set SHEARS_TUNING=again to tune the kernels again.")


def print_gpu_check(data: Record) -> None:
    print_line(f"{data['gpu']}, compute capability {data['capability']}, {size(data['memory'])}")
    print_line(", ".join(f"{name} {version}" for name, version in data["versions"].items()))
    columns = {**{key: key for key in ("verb", "format", "result", "difference")}, "s": "seconds"}
    print_rows(table_rows(data["verbs"], {**columns, "memory": "memory"}))
    print_line("difference is relative to fp32 on the CPU; memory is the peak of torch's allocator")


def print_plan(plan: "RunPlan") -> None:
    from shears.runs.plan import timed_rate

    weights = f"{plan.parameters / 1e6:,.1f} M weights" if plan.parameters else "unknown size"
    rates = {place: timed_rate(*place) for place in {stage.place for stage in plan.stages if stage.flops}}
    rows = [{**vars(each), "memory": each.peak, "hours": each.hours(rates)} for each in plan.stages]
    print_rows(table_rows(rows, STAGES), f"{plan.model} ({weights})")
    for (device, precision), rate in sorted(rates.items()):
        speed = f"has {rate / 1e12:.2g} TFLOP/s in one timed product" if rate else "is not on this machine"
        print_line(f"hours are arithmetic: {device} in {precision} {speed}")
    print_line(f"memory is an estimate for the longest rows; disk counts the files that stay in {plan.folder}")
    print_line(f"The run writes {size(plan.bytes_to_write)}; {size(free_bytes(plan.folder))} are free there.")


def print_candidates(record: Record) -> None:
    meeting = [each for each in record["candidates"] if each["meets"]]
    others = sorted((each for each in record["candidates"] if not each["meets"]), key=lambda each: each["bytes"])
    shown = [*meeting[:SHOWN], *others[:SHOWN]]
    title = f"Predictions for {record['model']} ({record['parameters'] / 1e6:,.1f} M weights), {record['target']}"
    print_rows(table_rows(shown, figures.CANDIDATES), title)
    if hidden := len(record["candidates"]) - len(shown):
        print_line(f"{hidden} other packages are not shown.")
    print_line("A name such as s50-int4-int8 means 50% zeros, int4 weights and int8 embeddings.")
    print_line(f"The order is {record['order']}.")


def print_costs(record: Record) -> None:
    total = sum(stage["seconds"] or 0.0 for stage in record["stages"])
    plan = f"The {record['effort']['name']} plan makes {record['first']} first"
    print_rows(table_rows(record["stages"], COSTS), f"{plan}, which takes about {total / 60:.1f} minutes")
    others = ", ".join(f"{seconds / 60:.1f} for {name}" for name, seconds in record["efforts"].items())
    print_line(f"Minutes of each effort: {others}")


def print_compressed(record: Record, real: Mapping[str, float]) -> None:
    print_rows(figures.plan_rows(record, real), f"Time of the {record['effort']['name']} plan")
    print_rows(figures.measured_rows(record), "Measured results; only the dense model's speed is predicted")


def closing_lines(record: Record, folder: str | Path) -> list[str]:
    """Return whether a package meets the target, what answers more, and how to use it."""
    row = next((row for row in figures.packages_of(record) if row["name"] == record["chosen"]), None)
    if row is None:
        tried = f"No package meets the target ({record['target']}) after {len(record['measured'])} attempts."
        return [f"{tried} Try more --sparsities or a looser target."]
    words = f"{row['bytes'] / 1e9:.4g} GB, {row['bits_per_weight']:.2f} bits per weight"
    speed = f"{row['tokens_per_second']:.1f} tokens/s"
    others = {"dense": record["dense"].get("answers")}
    if row.get("answers") and others["dense"]:
        ours, theirs = (f"{each['right'].count('1')} of {each['n']}" for each in (row["answers"], others["dense"]))
        quality = f"It answers {ours} held-out rows correctly, the dense model {theirs}."
    else:
        quality = f"Its loss is {row['loss']:.4f}, the dense model's is {record['dense']['held_out_loss']:.4f}."
    verdict = f"{Path(folder) / row['package']} meets the target ({record['target']}): {words}, {speed}. {quality}"
    if (rival := record.get("rival")) is not None:
        others[f"dense int4 ({rival['package']})"] = rival["answers"]
    right = (row.get("answers") or {}).get("right", "")
    better = [  # the original model may have been tested on fewer rows, the first ones
        f"{name} ({figures.answered_words(each)})"
        for name, each in others.items()
        if right and each is not None and each["right"].count("1") > right[: each["n"]].count("1")
    ]
    if better:
        verb = "answers" if len(better) == 1 else "answer"
        more = f"{' and '.join(better)} {verb} more of the same rows correctly"
        verdict = f"{more}. Keep the unpruned model if you can afford its size. {verdict}"
    package = quoted(Path(folder) / row["package"])
    if right and 2 * right.count("1") < len(right):
        verdict = f"Fewer than half of the answers are right; give more --time or rows. {verdict}"
    return [verdict, f"Next: shears chat {package}", f"Next: shears serve {package}"]


def print_preview(content: Record) -> None:
    for row in content["shown"]:
        print_line(f"row {row['row']}, {sum(part['tokens'] for part in row['parts']):,} tokens:")
        parts = [(part["text"][:LONGEST], part["loss"]) for part in row["parts"]]
        print_line("".join(f"[{text}]" if has_loss else text for text, has_loss in parts) + "\n")
    if content["shown"]:
        print_line("The model learns to write the text in [brackets]. Control characters are escaped.")
    print_line(f"{content['data']} has {content['rows']:,} rows, train uses {content['used']:,}")
    if long := content["longer_than_max_length"]:
        longest = f"longer than {content['max_length']} tokens"
        print_line(f"  left out because they are {longest}: {long:,} (raise --max-length to keep them)")
    if empty := content["without_completion"]:
        print_line(f"  left out because they have no completion: {len(empty):,} (the first is row {empty[0]})")
    if content["refused"]:
        print_line(f"  refused: {len(content['refused']):,} (train stops at the first)")
        for each in content["refused"][:REFUSED]:
            print_line(f"    row {each['row']}: {each['reason']}")
    if (tokens := content["tokens"])["total"]:
        spread = ", ".join(f"{name} {tokens[name]:,}" for name in ("min", "median", "p95", "max"))
        print_line(f"tokens per row: {spread}; all rows together have {tokens['total']:,}")
        print_line(f"tokens that the model learns to write, in the rows used: {tokens['with_loss']:,}")


def print_comparison(data: Record) -> None:
    tasks = data.get("tasks", [data])
    for task in tasks:
        of = f" of {task['task']}" if "task" in task else ""
        print_rows(figures.arm_rows(task), f"accuracy on {task['n']:,} examples{of}")
        rows = [figures.difference_row(each["name"], each) for each in task["differences"]]
        print_rows(rows, f"difference to {task['against']} on the same examples")
        for note in task.get("notes", []):
            print_line(note)
    tests = sorted({each["test"] for task in tasks for each in task["differences"]})
    print_line(f"p is the two-sided p value ({' or '.join(tests)}).")
    print_line("won, lost: numbers of examples that only this arm, or only the other, answers correctly.")
    print_line("Intervals cover the choice of examples. Several seeds are pooled by example.")
