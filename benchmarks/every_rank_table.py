"""Prints the results of benchmarks.every_rank: accuracy over rank, paired differences, cost, what a search gains."""

from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from statistics import median
from typing import Any

from benchmarks.every_rank_ways import RANKS, WAYS
from benchmarks.report import Pair, as_bits, paired_table, quotients
from shears.evaluation.statistics import Bits, pooled_accuracy

Row = dict[str, Any]
Cells = Mapping[str, Mapping[int, Row]]  # way -> seed -> row
LORA = [f"lora-{rank}" for rank in RANKS]
ORDER = (*WAYS, "sandwich", "curriculum")  # the last two are of old results: their samplings were removed


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of all tables, one set for every task, start and number of epochs."""
    keys = [(row.get("task", ""), row.get("start", ""), row.get("epochs", 0.0)) for row in rows]
    for task, start, epochs in sorted(set(keys)):
        chosen = [row for row, key in zip(rows, keys, strict=True) if key == (task, start, epochs)]
        yield f"\n### {task}, start {start}, {epochs:g} epochs"
        kinds = {kind: [row for row in chosen if row["kind"] == kind] for kind in ("test", "cost", "search")}
        if cells := _by_way(kinds["test"]):
            yield from _accuracies(cells)
            yield from paired_table(list(_differences(cells)))
            yield from _settings(cells)
        yield from _cost(kinds["cost"])
        yield from paired_table(list(_gains(kinds["search"])))


def _by_way(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["way"], {})[row["seed"]] = row
    return {name: found[name] for name in ORDER if name in found}


def area_weights(ranks: Sequence[int]) -> dict[int, int]:
    """Return whole numbers whose shares, times the accuracies, sum to the area under accuracy over rank.

    The area is that of the trapezoids between the ranks over the width of all (AURAC, arXiv 2605.07850).
    """
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return {ordered[0]: 1}
    ends = [ordered[0], *ordered, ordered[-1]]
    weights = {rank: ends[place + 2] - ends[place] for place, rank in enumerate(ordered)}
    divisor = gcd(*weights.values())
    return {rank: weight // divisor for rank, weight in weights.items()}


def _elastic(cells: Cells) -> list[str]:
    return [name for name in cells if name not in LORA]


def _runs(cells: Cells, way: str, rank: int) -> dict[int, list[Bits]]:
    """Return the answers of a way at a rank by seed; `lora` stands for the training of that rank."""
    name = f"lora-{rank}" if way == "lora" else way
    return {seed: [as_bits(row["right"][str(rank)])] for seed, row in cells.get(name, {}).items()}


def _area(cells: Cells, way: str) -> dict[int, list[Bits]]:
    """Return by seed the answers at every rank as often as the area weighs it, so that their mean is the area.

    Only seeds that have all ranks count.
    """
    weights = area_weights(RANKS)
    by_rank = {rank: _runs(cells, way, rank) for rank in RANKS}
    seeds = sorted(set.intersection(*(set(runs) for runs in by_rank.values())))
    return {seed: [run for rank in RANKS for run in by_rank[rank][seed] * weights[rank]] for seed in seeds}


def _accuracies(cells: Cells) -> Iterator[str]:
    yield f"\n| way | {' | '.join(f'rank {rank}' for rank in RANKS)} | area |"
    yield "| --- " * (len(RANKS) + 2) + "|"
    for way, name in [*((way, way) for way in _elastic(cells)), ("lora", "LoRA of each rank")]:
        areas = _area(cells, way)
        if areas:
            columns = [{seed: _runs(cells, way, rank)[seed] for seed in areas} for rank in RANKS] + [areas]
            shares = [pooled_accuracy([run for runs in column.values() for run in runs]).value for column in columns]
            yield f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"


def _differences(cells: Cells) -> Iterator[Pair]:
    """Yield every elastic way against the LoRA of each rank, and areas against nested."""
    for way in _elastic(cells):
        for rank in RANKS:
            title = f"{way}, rank {rank}, against LoRA of rank {rank}"
            yield title, _runs(cells, way, rank), _runs(cells, "lora", rank)
    for other in [*_elastic(cells), "lora"]:
        if other != "nested":
            yield f"area: nested against {other}", _area(cells, "nested"), _area(cells, other)


def _settings(cells: Cells) -> Iterator[str]:
    yield "\n| way | learning rate | alpha / largest rank | seeds |\n| --- | --- | --- | --- |"
    for way, by_seed in cells.items():
        row = next(iter(by_seed.values()))
        yield f"| {way} | {row['rate']:g} | {row['scaling']:g} | {', '.join(map(str, sorted(by_seed)))} |"


def _cost(rows: Sequence[Row]) -> Iterator[str]:
    """Yield each way's step over LoRA's step of the same number; the first step is a warm-up."""
    if not rows:
        return
    seconds = rows[-1]["seconds"]
    yield "\n| way | seconds a step, median | over LoRA's, median | smallest | largest |"
    yield "| --- | --- | --- | --- | --- |"
    for way in seconds:
        own, lora = seconds[way][1:], next(iter(seconds.values()))[1:]
        ratios = quotients(own, lora)
        yield f"| {way} | {median(own):.2f} | {median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"


def _gains(rows: Sequence[Row]) -> Iterator[Pair]:
    """Yield what a configuration chosen on validation gains on test over the uniform one of the same size."""
    for way, rank in dict.fromkeys((row["way"], row["rank"]) for row in rows):
        own = [row for row in rows if (row["way"], row["rank"]) == (way, rank)]
        ones, others = ({row["seed"]: [as_bits(row["right"][key])] for row in own} for key in ("searched", "uniform"))
        yield f"{way}: searched against uniform rank {rank}", ones, others
