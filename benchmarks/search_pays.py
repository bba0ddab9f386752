"""Does search pay? Test accuracy of sub-adapters found by several strategies, over the seeds of the super-adapter.

    python -m benchmarks.search_pays run --adapter NAME=FOLDER... --validation FILE --test FILE --results FILE.jsonl
    python -m benchmarks.search_pays table FILE.jsonl
    python -m benchmarks.search_pays fronts FILE.jsonl   # how much the fronts of each super-adapter dominate

FOLDERs are super-adapters that differ by their seed alone. Every strategy searches the validation loss (and parameters)
with the same number of evaluations and sees the validation examples only. Its choice is measured once on the test
examples by generated answers, as the task reads them. NSGA-II's and RNSGA-II's choice is the best loss on their fronts.
Each super-adapter and strategy appends one row with every test answer; existing rows are not measured again. The table
has test accuracies, and each strategy's paired difference to the heuristic with seeds pooled example by example.
`hill-climbing, raced` evaluates by races in the predicted order. Needs trained super-adapters.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import add_row, log_to_stderr, rows_of
from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.data.examples import load_examples
from shears.evaluation.statistics import paired_difference, pooled_accuracy
from shears.records.artifacts import read_json
from shears.searching.measure.decoding import DecodingGauge
from shears.searching.result import hypervolume
from shears.searching.stage import search

HEURISTIC = "heuristic"
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    HEURISTIC: {"strategy": "heuristic"},
    "maximal": {"strategy": "maximal"},
    "minimal": {"strategy": "minimal"},
    "random": {"strategy": "random"},
    "hill-climbing": {"strategy": "hill-climbing"},
    "hill-climbing, raced": {"strategy": "hill-climbing", "order": "predicted", "race_error": 0.05},
    "NSGA-II": {"strategy": "nsga2"},
    "RNSGA-II": {"strategy": "rnsga2"},
}
ENDS = ("maximal", "minimal")  # evaluated beside the heuristic, whatever that has


def chosen(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Search; return the chosen evaluation (of an end of the space, that end) and the whole result."""
    with tempfile.TemporaryDirectory() as place:
        result = read_json(search(folder, Path(place) / "found", **settings, **STRATEGIES[name]) / "result.json")
    return result["evaluations"][-1] if name in ENDS else result["chosen"], result


def answers(adapter: SuperAdapter, ranks: Mapping[str, int], task: str, test: str, limit: int | None) -> list[bool]:
    """Return which test examples a sub-adapter answers rightly."""
    config = SearchConfig(data="unused", task=task, precision="auto", device="cpu", max_new_tokens=32, batch_size=32)
    examples = load_examples(test, adapter.record["template"], adapter.tokenizer, limit)
    gauge = DecodingGauge(adapter, examples, config, width=1)
    return [bool(value) for value in gauge.measure([RankConfig(dict(ranks))], 0)[0]]


def row(name: str, folder: Path, strategy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Search with one strategy on one super-adapter and measure the choice."""
    settings = {
        "data": str(arguments.validation), "limit": arguments.limit, "max_evaluations": arguments.evaluations,
        "precision": "fp32", "device": "cpu", "model": arguments.base,
    }  # fmt: skip
    start = time.process_time()
    best, result = chosen(folder, strategy, settings)
    seconds = time.process_time() - start
    adapter = load_super_adapter(folder, arguments.base, device="cpu")
    right = answers(adapter, best["ranks"], arguments.task, str(arguments.test), arguments.test_limit)
    figures = {key: best["metrics"][key] for key in ("loss", "parameters")}
    return {
        "adapter": name, "strategy": strategy, **figures, "limit": arguments.limit,
        "evaluations": len(result["evaluations"]), "seconds": round(seconds, 1),
        "hypervolume": result["hypervolume"], "right": right,
        "front": [each["metrics"] for each in result["pareto"]],
    }  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Append a row for every super-adapter and strategy that has none."""
    results: Path = arguments.results
    there = {(each["adapter"], each["strategy"]) for each in rows_of(results)}
    for spec in arguments.adapter:
        name, folder = spec.split("=", 1)
        for strategy in arguments.strategies or STRATEGIES:
            if (name, strategy) not in there:
                add_row(results, row(name, Path(folder), strategy, arguments))


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: one strategy a line, over all super-adapters that it was measured on."""
    names = list(dict.fromkeys(each["adapter"] for each in rows))
    by_strategy = {
        strategy: {each["adapter"]: each for each in rows if each["strategy"] == strategy} for strategy in STRATEGIES
    }
    heads = ["strategy", *names, "pooled (95 %)", "minus heuristic (95 %)", "loss", "parameters", "CPU s"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for strategy, found in by_strategy.items():
        if found:
            yield _line(strategy, found, by_strategy[HEURISTIC], names)


def _line(
    strategy: str, found: Mapping[str, dict[str, Any]], heuristic: Mapping[str, dict[str, Any]], names: Sequence[str]
) -> str:
    shares = [f"{mean(found[name]['right']):.1%}" if name in found else "-" for name in names]
    value, low, high = pooled_accuracy([each["right"] for each in found.values()])
    both = [name for name in found if name in heuristic]
    against = "-"
    if both and strategy != HEURISTIC:
        gap = paired_difference([found[name]["right"] for name in both], [heuristic[name]["right"] for name in both])
        against = f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    loss, size, seconds = (mean([each[key] for each in found.values()]) for key in ("loss", "parameters", "seconds"))
    pooled, cost = f"{value:.1%} ({low:.1%} to {high:.1%})", f"{loss:.4f} | {size / 1e6:.2f} M | {seconds:.0f}"
    return f"| {strategy} | {' | '.join(shares)} | {pooled} | {against} | {cost} |"


def fronts(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table: the share of each super-adapter's box of losses and parameters that a strategy's front dominates.

    The box is that of all the fronts found on the super-adapter, so its shares can be compared with each other only.
    """
    names = list(dict.fromkeys(each["adapter"] for each in rows))
    yield f"| strategy | {' | '.join(names)} | mean | points on the front | parameters, M |"
    yield "| --- " * (len(names) + 4) + "|"
    corners = {name: _corners([each for each in rows if each["adapter"] == name]) for name in names}
    for strategy in STRATEGIES:
        found = {each["adapter"]: each for each in rows if each["strategy"] == strategy}
        if not found:
            continue
        shares = {name: _share(_points(each), *corners[name]) for name, each in found.items()}
        points = [point for each in found.values() for point in _points(each)]
        sizes = [size / 1e6 for _, size in points]
        cells = [f"{shares[name]:.3f}" if name in shares else "-" for name in names]
        span = f"{min(sizes):.2f} to {max(sizes):.2f}"
        cells += [f"{mean(list(shares.values())):.3f}", f"{len(points) / len(found):.1f}", span]
        yield f"| {strategy} | {' | '.join(cells)} |"


def _points(found: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(each["loss"], each["parameters"]) for each in found["front"]]


def _corners(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, float], tuple[float, float]]:
    losses, sizes = zip(*(point for each in rows for point in _points(each)), strict=True)
    return (min(losses), min(sizes)), (max(losses), max(sizes))


def _share(points: Sequence[tuple[float, float]], low: tuple[float, float], high: tuple[float, float]) -> float:
    return hypervolume(points, high) / ((high[0] - low[0]) * (high[1] - low[1]))


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--adapter", nargs="+", required=True, help="NAME=FOLDER")
    running.add_argument("--validation", type=Path, required=True)
    running.add_argument("--test", type=Path, required=True)
    running.add_argument("--results", type=Path, required=True)
    running.add_argument("--base", help="the sparse base where it was moved")
    running.add_argument("--task", choices=["number", "equation"], default="equation")
    running.add_argument("--strategies", nargs="+", choices=STRATEGIES)
    running.add_argument("--evaluations", type=int, default=100)
    running.add_argument("--limit", type=int, help="only the first so many validation examples")
    running.add_argument("--test-limit", type=int, help="only the first so many test examples")
    for name in ("table", "fronts"):
        commands.add_parser(name).add_argument("results", type=Path)
    arguments = parser.parse_args()
    log_to_stderr()
    if arguments.command == "run":
        run(arguments)
    else:
        for line in {"table": table, "fronts": fronts}[arguments.command](rows_of(arguments.results)):
            print(line)


if __name__ == "__main__":
    main()
