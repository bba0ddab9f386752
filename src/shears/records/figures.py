"""Figures of records as words and table rows, for the terminal, the cards and the report. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

Record = Mapping[str, Any]
Row = dict[str, object]  # of a table: column -> cell
SHARES = ("acc", "exact_match")  # beginnings of metrics, such as lm-eval's acc_norm
CUT = "cut"  # a record's flag: the longest length cut the answer; in details, the number of them
MINUTES = ("seconds", "real")  # keys of seconds that are shown in minutes
BYTES = ("bytes", "size_bytes", "memory", "disk", "memory_bytes")  # keys of numbers of bytes
BENCH = {
    "name": "model", "decode_tokens_per_second": "decode", "prefill_tokens_per_second": "prefill",
    "time_to_first_token_seconds": "seconds to first token", "memory_bytes": "memory",
}  # fmt: skip
RATIOS = {"over": "package compared with", "decode": "decode", "prefill": "prefill", "first_token": "first token"}
PACKAGE = {"name": "package", "bytes": "size", "bits_per_weight": "bits per weight", "tokens_per_second": "tokens/s"}
CANDIDATES = {**PACKAGE, "meets": "meets"}
MEASURED = {**PACKAGE, "loss": "loss", "answers": "right answers", "holds": "meets"}
PLANNED = {"name": "stage", "work": "what it does", "seconds": "minutes planned", "real": "minutes taken"}
CONTAMINATION = "seen_in_training"  # a record's flag; in details, the number of such questions


def is_share(metric: str) -> bool:
    return metric.startswith(SHARES)


def figure(metric: str, value: int | float) -> str:
    """Return a share in percent, a perplexity with two decimals, others with four digits or all."""
    if is_share(metric):
        return f"{value:.1%}"
    if "perplexity" in metric or "bits_per" in metric:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def interval(row: Record) -> str:
    return " to ".join(figure(row["metric"], end) for end in row["ci95"]) if row["ci95"] else "unknown"


def points(*shares: int | float) -> str:
    """Return a difference of shares, or the ends of its interval, in points."""
    return " to ".join(f"{100 * share:+.1f}" for share in shares)


def size(num_bytes: int | float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def table_rows(records: Iterable[Record], columns: Mapping[str, str]) -> list[Row]:
    """Return each record as a row of texts under the headings `columns`, without keys never set."""
    records = list(records)
    known = {key: head for key, head in columns.items() if any(each.get(key) is not None for each in records)}
    return [{head: cell(key, each.get(key)) for key, head in known.items()} for each in records]


def cell(key: str, value: Any) -> str:
    """Return a value of a record as text, in the unit that its key and its type say."""
    text = str(value)
    if value is None or isinstance(value, bool):
        text = {None: "-", True: "yes", False: "no"}[value]
    elif isinstance(value, Mapping):
        text = _spread(value) if "median" in value else answered_words(value)
    elif key in BYTES:
        text = size(value)
    elif key.endswith(("fingerprint", "_sha256")):
        text = text[:16]
    elif isinstance(value, int | float):
        minutes = f"{value / 60:.1f}"
        text = minutes if key in MINUTES else f"{value:,}" if isinstance(value, int) else figure("", value)
    return text


def _spread(spread: Mapping[str, float]) -> str:
    middle, low, high = (figure("", spread[key]) for key in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"


def other_readings(figures: Record) -> list[dict[str, Any]]:
    """Return the details that have an interval (`NAME`, `NAME_low`, `NAME_high`) as figures."""
    details = figures.get("details") or {}
    ends = {name: (details[f"{name}_low"], details[f"{name}_high"]) for name in details if f"{name}_low" in details}
    return [
        {**figures, "metric": name.replace("_", " "), "value": details[name], "ci95": each}
        for name, each in ends.items()
    ]


def model_rows(models: Sequence[Record]) -> list[Row]:
    """Return a row for each measurement: model, figure, other readings, examples, known sizes."""
    rows = []
    for each in models:
        row: Row = {"model": each["name"], each["metric"]: figure(each["metric"], each["value"])}
        row["95 % interval"] = interval(each)
        for reading in other_readings(each):
            row[reading["metric"].removeprefix("accuracy ")] = figure(reading["metric"], reading["value"])
        row["n"] = f"{each['n']:,}"
        if "nonzeros" in each:
            row["zeros"] = f"{each['sparsity']:.0%}"
            row["non-zeros"] = f"{each['nonzeros'] / 1e6:.1f} M"
            row["adapter"] = f"{each['adapter_parameters'] / 1e6:.1f} M" if each["adapter_parameters"] else "-"
        rows.append(row)
    return rows


def arm_rows(task: Record) -> list[Row]:
    return [
        {
            "arm": arm["name"],
            "runs": arm["runs"],
            "accuracy": figure("accuracy", arm["value"]),
            "95 % interval": " to ".join(figure("accuracy", end) for end in arm["ci95"]),
            "spread over seeds": "" if arm["spread"] is None else figure("accuracy", arm["spread"]),
        }
        for arm in task["arms"]
    ]


def difference_row(name: str, gap: Record) -> Row:
    """Return the row of a paired difference: points, interval, examples won and lost, p."""
    row: Row = {"arm": name, "points": points(gap["value"]), "95 % interval": points(*gap["ci95"])}
    if "won" in gap:
        row["won, lost"] = f"{gap['won']:,}, {gap['lost']:,}"
    row["p"] = _p(gap["p"])
    if "p_holm" in gap:
        row["p, Holm"] = _p(gap["p_holm"])
    return row


def _p(value: int | float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def remarks(models: Iterable[Record]) -> list[str]:
    words = []
    for each in models:
        details = each.get("details") or {}
        of = f" of {each['name']}" if "name" in each else ""
        if cut := int(details.get(CUT, 0)):
            words.append(f"{cut:,} of the {each['n']:,} answers{of} were cut at the longest length.")
        if seen := int(details.get(CONTAMINATION, 0)):
            rest = f"; on the others the accuracy is {unseen:.1%}" if (unseen := details.get("accuracy_unseen")) else ""
            words.append(f"{seen:,} of the {each['n']:,} test questions also occur in the training data{of}{rest}.")
    return words


def lead_lines(lead: Record | None) -> list[str]:
    """Return a run's main difference in words; both figures where they are not paired."""
    if lead is None:
        return []
    against = lead["against"] + (" (not trained on the task)" if lead["untrained"] else "")
    if (gap := lead["difference"]) is None:
        one, other = (figure(lead["metric"], value) for value in lead["values"])
        lines = [f"The {lead['metric']} of {lead['name']} is {one}, that of {against} is {other}."]
    else:
        lines = [
            f"{lead['name']} minus {against}:",
            f"  {points(gap['value'])} points, 95 % interval {points(*gap['ci95'])}",
            f"  of {gap['n']:,} questions, only the first answers {gap['won']:,} correctly, "
            f"only the second {gap['lost']:,}",
        ]
    return lines


def ranks_by_kind(ranks: Mapping[str, int | Sequence[int]]) -> dict[str, str]:
    """Return a text for every kind of group: the layers of each rank, or of each list of ranks."""
    kinds: dict[str, dict[int, str]] = {}
    for name, rank in ranks.items():
        _, layer, kind = name.split(".", 2)
        kinds.setdefault(kind, {})[int(layer)] = str(rank) if isinstance(rank, int) else "/".join(map(str, rank))
    return {kind: by_layer(texts) for kind, texts in kinds.items()}


def by_layer(figures: Mapping[int, str]) -> str:
    """Return each figure with its layers, the most frequent first, such as `24 in all 6 layers`."""
    layers: dict[str, list[int]] = {}
    for layer, figure in sorted(figures.items()):
        layers.setdefault(figure, []).append(layer)
    if len(layers) == 1:
        return f"{next(iter(layers))} in all {len(figures)} layers"
    by_frequency = sorted(layers.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{each} in layer{'s' * (len(numbers) > 1)} {_ranges(numbers)}" for each, numbers in by_frequency)


def _ranges(numbers: list[int]) -> str:
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def ranks_of(record: Record) -> Mapping[str, int | Sequence[int]]:
    """Return the rank or ranks of each group of a super-adapter, a sub-adapter or a search."""
    groups = {name: group["ranks"] for name, group in record.get("groups", {}).items()}
    ranks: Mapping[str, int | Sequence[int]] = record.get("ranks") or record.get("chosen", {}).get("ranks", {})
    return groups or ranks


def answered_words(answers: Record) -> str:
    low, high = (100 * end for end in answers["ci95"])
    right = answers["right"].count("1")
    return f"{right} of {answers['n']}, {100 * answers['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


def packages_of(record: Record) -> list[Record]:
    rivals = [each for each in [record.get("rival")] if each and each not in record["measured"]]
    return [*record["measured"], *rivals]


def measured_models(record: Record) -> list[Record]:
    dense = record["dense"]
    return [{**dense, "name": "dense", "loss": dense.get("held_out_loss")}, *packages_of(record)]


def measured_rows(record: Record) -> list[Row]:
    models = [{"bits_per_weight": 8 * each["bytes"] / record["parameters"], **each} for each in measured_models(record)]
    return table_rows(models, MEASURED)


def plan_rows(record: Record, real: Mapping[str, float]) -> list[Row]:
    """Return a row for each stage of a compression: minutes planned and, where known, real."""
    stages = [stage | {"real": real.get(stage["name"])} for stage in record["stages"] if stage["seconds"]]
    total = {"name": "all", "seconds": sum(stage["seconds"] for stage in stages), "real": sum(real.values())}
    return table_rows([*stages, total], PLANNED)
