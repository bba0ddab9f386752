"""Prints the results of benchmarks.every_rank: accuracy over rank, paired differences, cost, what a search gains."""

from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from statistics import median
from typing import Any

from benchmarks.every_rank_ways import COST_WAYS, RANKS, WAYS
from benchmarks.rightness import as_bits
from shears.evaluation.statistics import bootstrap_difference, holm, paired_difference, pooled_accuracy

Row = dict[str, Any]
Runs = list[list[bool]]  # one list of answers a seed
Cells = Mapping[str, Mapping[int, Row]]  # way -> seed -> row


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of all tables, one set for every task, start and number of epochs."""
    for task, start, epochs in sorted({(row["task"], row["start"], row["epochs"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["start"], row["epochs"]) == (task, start, epochs)]
        yield f"\n### {task}, start {start}, {epochs:g} epochs"
        kinds = {kind: [row for row in chosen if row["kind"] == kind] for kind in ("test", "cost", "search")}
        cells = _by_way(kinds["test"])
        yield from _accuracies(cells)
        yield from _differences(cells)
        yield from _settings(cells)
        yield from _cost(kinds["cost"])
        yield from _gains(kinds["search"])


def _by_way(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["way"], {})[row["seed"]] = row
    return {name: found[name] for name in WAYS if name in found}


def area_weights(ranks: Sequence[int]) -> dict[int, int]:
    """Return whole numbers whose shares, times the accuracies, sum to the area under accuracy over rank.

    The area is that of the trapezoids between the ranks over the width of all (AURAC, arXiv 2605.07850).
    """
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return {ordered[0]: 1}
    weights = {}
    for index, rank in enumerate(ordered):
        before = ordered[max(index - 1, 0)]
        after = ordered[min(index + 1, len(ordered) - 1)]
        weights[rank] = after - before
    divisor = gcd(*weights.values())
    return {rank: weight // divisor for rank, weight in weights.items()}


def _runs(cells: Cells, way: str, rank: int, seeds: Sequence[int]) -> Runs:
    return [as_bits(cells[way][seed]["right"][str(rank)]) for seed in seeds]


def _area_runs(cells: Cells, way: str, seeds: Sequence[int]) -> Runs:
    """Return the answers at every rank as often as the area weighs it, so that their mean is the area.

    `lora` stands for the trainings of each rank.
    """
    names = {rank: f"lora-{rank}" if way == "lora" else way for rank in RANKS}
    weights = area_weights(RANKS)
    return [run for rank in RANKS for run in _runs(cells, names[rank], rank, seeds) * weights[rank]]


def _seeds(cells: Cells, ways: Sequence[str]) -> list[int]:
    """Return the seeds that all of the ways have."""
    if any(way not in cells for way in ways):
        return []
    return sorted(set.intersection(*(set(cells[way]) for way in ways)))


LORA = [f"lora-{rank}" for rank in RANKS]


def _accuracies(cells: Cells) -> Iterator[str]:
    yield f"\n| way | {' | '.join(f'rank {rank}' for rank in RANKS)} | area |"
    yield "| --- " * (len(RANKS) + 2) + "|"
    for way in [name for name in cells if WAYS[name].is_elastic]:
        seeds = sorted(cells[way])
        values = [f"{pooled_accuracy(_runs(cells, way, rank, seeds)).value:.1%}" for rank in RANKS]
        yield f"| {way} | {' | '.join(values)} | {pooled_accuracy(_area_runs(cells, way, seeds)).value:.1%} |"
    if seeds := _seeds(cells, LORA):
        values = [f"{pooled_accuracy(_runs(cells, f'lora-{rank}', rank, seeds)).value:.1%}" for rank in RANKS]
        area = pooled_accuracy(_area_runs(cells, "lora", seeds)).value
        yield f"| LoRA of each rank | {' | '.join(values)} | {area:.1%} |"


def _differences(cells: Cells) -> Iterator[str]:
    """Yield every elastic way against the LoRA of each rank, and areas against nested; Holm over the whole table."""
    pairs: list[tuple[str, list[int], Runs, Runs]] = []
    elastic = [name for name in cells if WAYS[name].is_elastic]
    for way in elastic:
        for rank in RANKS:
            if seeds := _seeds(cells, [way, f"lora-{rank}"]):
                ones, others = _runs(cells, way, rank, seeds), _runs(cells, f"lora-{rank}", rank, seeds)
                pairs.append((f"{way}, rank {rank}, against LoRA of rank {rank}", seeds, ones, others))
    for other in [*elastic, "lora"]:
        ways = ["nested", *(LORA if other == "lora" else [other])]
        if other != "nested" and (seeds := _seeds(cells, ways)):
            ones, others = _area_runs(cells, "nested", seeds), _area_runs(cells, other, seeds)
            pairs.append((f"area: nested against {other}", seeds, ones, others))
    yield from _paired(pairs)


def _paired(pairs: Sequence[tuple[str, list[int], Runs, Runs]]) -> Iterator[str]:
    if not pairs:
        return
    yield "\n| difference, paired by example | points | 95 % interval | p | p (Holm) | seeds |"
    yield "| --- " * 6 + "|"
    p_values = [bootstrap_difference(ones, others).p for _, _, ones, others in pairs]
    for (title, seeds, ones, others), p, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        value, low, high = paired_difference(ones, others)
        figures = f"{100 * value:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} | {p:.4f} | {corrected:.4f}"
        yield f"| {title} | {figures} | {', '.join(map(str, seeds))} |"


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
    for way in COST_WAYS:
        own, lora = seconds[way][1:], seconds[COST_WAYS[0]][1:]
        quotients = [one / other for one, other in zip(own, lora, strict=True)]
        yield (f"| {way} | {median(own):.2f} | {median(quotients):.3f} | {min(quotients):.3f} | {max(quotients):.3f} |")


def _gains(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a configuration chosen on validation gains on test over the uniform one of the same size."""
    pairs = []
    for way, rank in dict.fromkeys((row["way"], row["rank"]) for row in rows):
        own = sorted((row for row in rows if (row["way"], row["rank"]) == (way, rank)), key=lambda row: row["seed"])
        seeds = [row["seed"] for row in own]
        ones, others = ([as_bits(row["right"][key]) for row in own] for key in ("searched", "uniform"))
        pairs.append((f"{way}: searched against uniform rank {rank}", seeds, ones, others))
    yield from _paired(pairs)
