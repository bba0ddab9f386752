"""Figures of measurements in words, and the tables of a card in Markdown. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shears.config.notation import by_layer

Record = Mapping[str, Any]
SHARES = ("acc", "exact_match")  # beginnings of metrics, such as lm-eval's acc_norm
CUT = "cut"  # a record's flag: the longest length cut the answer; in details, the number of such answers
CONTAMINATION = "seen_in_training"  # a record's flag; in details, the number of such questions


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share of the examples, which is shown in percent."""
    return metric.startswith(SHARES)


def other_readings(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the details that have an interval (`NAME`, `NAME_low`, `NAME_high`) as figures."""
    details = figures.get("details") or {}
    intervals = {
        name: (details[f"{name}_low"], details[f"{name}_high"]) for name in details if f"{name}_low" in details
    }
    return [
        {**figures, "metric": name.replace("_", " "), "value": details[name], "ci95": interval}
        for name, interval in intervals.items()
    ]


def answered_words(answers: Mapping[str, Any]) -> str:
    """Return the right answers of a model in a compression in words: 45 of 50, 90.0 % (78.6 to 95.7)."""
    low, high = (100 * end for end in answers["ci95"])
    right = answers["right"].count("1")
    return f"{right} of {answers['n']}, {100 * answers['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


def packages_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the figures of the packages that a compression has made, the rival last, each once."""
    rival = record.get("rival")
    return [*record["measured"], *([] if rival is None or rival in record["measured"] else [rival])]


def cut_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence on the generated answers of measurements that the longest length cut, if any were generated."""
    counts = [
        f"{f'{name} ' if (name := row.get('name')) else ''}{int(row['details'][CUT]):,} of {row['n']:,}"
        for row in rows
        if CUT in (row.get("details") or {})
    ]
    return f"Answers cut at the longest length: {', '.join(counts)}." if counts else ""


def cut_at_ranks(curve: Mapping[str, Any]) -> str:
    """Return the sentence of `cut_words` for every rank of a curve."""
    return cut_words([{**point, "name": f"rank {point['rank']}"} for point in curve["points"]])


def seen_words(figures: Mapping[str, Any], of: str = "", percent: Callable[[float], str] = "{:.1%}".format) -> str:
    """Return a sentence on the test questions that are in the training data of `of`, if any."""
    details = figures.get("details") or {}
    if not (seen := int(details.get(CONTAMINATION, 0))):
        return ""
    share = f"{seen:,} of the {figures['n']:,} test questions"
    words = f"{share} stand in the training data{f' of {of}' if of else ''}"
    others = details.get("accuracy_unseen")
    if others is not None:
        return f"{words}; on the others {'its' if of else 'the'} accuracy is {percent(others)}."
    return f"{words}; there are no others." if seen >= figures["n"] else f"{words}."


def figures_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of measurements and, below it, sentences on cut answers and contamination."""
    readings = [{reading["metric"]: reading for reading in other_readings(row)} for row in figures]
    others = list(dict.fromkeys(name for row in readings for name in row))
    rows = (
        (row["name"], row["task"], _figure(row["metric"], row["value"]), _interval(row), row["n"],
         *(_reading(reading.get(name)) for name in others))
        for row, reading in zip(figures, readings, strict=True)
    )  # fmt: skip
    seen = filter(None, (cut_words(figures), *(seen_words(row, row["name"]) for row in figures)))
    return "\n\n".join([table(("model", "task", figures[0]["metric"], "95 % interval", "n", *others), rows), *seen])


def sparsity_table(record: Record) -> str | None:
    """Return the share of zeros by kind of linear; None for a record without linears."""
    counts: dict[str, tuple[int, int]] = {}
    linears = {name: linear for name, linear in record.get("linears", {}).items() if "zeros" in linear}
    for name, linear in linears.items():
        kind = next(part for part in reversed(name.split(".")) if not part.isdigit())
        weights, zeros = counts.get(kind, (0, 0))
        counts[kind] = (weights + linear["shape"][0] * linear["shape"][1], zeros + linear["zeros"])
    rows = ((kind, f"{weights:,}", f"{zeros / weights:.1%}") for kind, (weights, zeros) in counts.items())
    return "## Zeros\n\n" + table(("linear", "weights", "zeros"), rows) if counts else None


def rank_table(record: Record) -> str | None:
    """Return the ranks of every kind of group."""
    groups = record.get("ranks") or {name: group["ranks"] for name, group in record.get("groups", {}).items()}
    rows = [(f"`{kind}`", words) for kind, words in ranks_by_kind(groups).items()]
    return "## Ranks\n\n" + table(("group", "rank"), rows) if rows else None


def ranks_by_kind(ranks: Mapping[str, int | Sequence[int]]) -> dict[str, str]:
    """Return a text for every kind of group: the layers of each rank, or of each list of ranks."""
    kinds: dict[str, dict[int, str]] = {}
    for name, rank in ranks.items():
        _, layer, kind = name.split(".", 2)
        kinds.setdefault(kind, {})[int(layer)] = str(rank) if isinstance(rank, int) else "/".join(map(str, rank))
    return {kind: by_layer(texts) for kind, texts in kinds.items()}


def size_table(record: Record) -> str | None:
    """Return the sizes of a package, adapter included, and of the dense model; None without sizes."""
    sizes = record.get("bytes")
    if not sizes:
        return None
    rows = [
        ("packed", f"{sizes['model'] / 1e6:,.1f} MB"),
        (f"dense, {dense_format(record)}", f"{sizes['model_dense'] / 1e6:,.1f} MB"),
    ]
    return "## Size\n\n" + table(("model", "on disk"), rows)


def dense_format(record: Record) -> str:
    """Return the number format of the dense model that a package is compared with."""
    return "fp32" if record.get("values") == "fp32" else "bf16"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; characters that would end a cell are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _reading(figures: Mapping[str, Any] | None) -> str:
    return f"{_figure(figures['metric'], figures['value'])} ({_interval(figures)})" if figures else ""


def _interval(figures: Mapping[str, Any]) -> str:
    return " to ".join(_figure(figures["metric"], edge) for edge in figures["ci95"])


def _figure(metric: str, value: float) -> str:
    return f"{value:.1%}" if is_share(metric) else f"{value:.4g}"
