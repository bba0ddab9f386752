"""Accuracy of pruned models on multiple-choice questions before training, by method and calibration text.

    python -m benchmarks.pruned_knowledge run --data FOLDER --task arc-easy-text --work DIR --results FILE.jsonl
    python -m benchmarks.pruned_knowledge table --results FILE.jsonl

FOLDER is that of benchmarks.nls, with wikitext-2/ in it. Calibration takes 32 x 512 tokens, or the number of sequences
in a row's name: 120 are nearly all of ARC-Easy's training data. Every model is SmolLM2-135M at 50 %, measured without
and with its recovery by moments (rank 40, not trained). Differences are to Wanda, paired by question. There is no test,
because it would need the data.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shears
from benchmarks.nls import MODEL
from benchmarks.nls_arms import BEST, RECONSTRUCT
from benchmarks.nls_tasks import TASKS, Task
from benchmarks.report import add_row, environment, log_to_stderr, rows_of
from benchmarks.rightness import as_bits, as_text
from shears.evaluation.statistics import paired_difference, pooled_accuracy

WAYS: Mapping[str, Mapping[str, Any]] = {
    "wanda": {},
    "wanda-reconstruct": RECONSTRUCT,
    "wanda-reconstruct-120": {**RECONSTRUCT, "num_samples": BEST["num_samples"]},
    "admm-sensitivity-120": BEST,
    "sparsegpt": {"method": "sparsegpt"},
    "admm": {"method": "admm"},
    "wanda-owl": {"allocation": "owl"},
    "wanda-sensitivity": {"allocation": "sensitivity"},
    "wanda-wikitext": {"calibration": "wikitext-2/valid.txt"},
    "sparsegpt-wikitext": {"method": "sparsegpt", "calibration": "wikitext-2/valid.txt"},
}
REFERENCE = "wanda"


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(TASKS), default="arc-easy-text")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--work", type=Path, default=Path("runs/pruned-knowledge"), help="keep the models here")
    parser.add_argument("--results", type=Path, default=Path("pruned-knowledge.jsonl"))
    arguments = parser.parse_args()
    if arguments.command == "table":
        _print_table(rows_of(arguments.results))
        return
    log_to_stderr()
    print(environment(), flush=True)
    task = TASKS[arguments.task]
    data = task.write(arguments.data, arguments.work / task.name)
    done = [(row["task"], row["way"]) for row in rows_of(arguments.results)]
    for way in ["dense", *arguments.ways]:
        if (task.name, way) not in done:
            row = _measured(way, task, data, arguments.data, arguments.work / task.name)
            add_row(arguments.results, {"task": task.name, "way": way, **row})


def _measured(way: str, task: Task, data: Mapping[str, Path], source: Path, work: Path) -> dict[str, Any]:
    if way == "dense":
        return {"right": {"sparse": _right(MODEL, None, task, data["test"])}}
    settings = {"calibration": str(data["train"]), **WAYS[way]}
    if "calibration" in WAYS[way]:
        settings["calibration"] = str(source / WAYS[way]["calibration"])
    model = work / way
    start = time.monotonic()
    if not model.exists():
        shears.sparsify(MODEL, model, recover_rank=40, recover_by="moments", **settings)
    seconds = round(time.monotonic() - start, 1)
    adapters = {"sparse": None, "recovery": str(model / "recovery")}
    right = {name: _right(str(model), adapter, task, data["test"]) for name, adapter in adapters.items()}
    return {"seconds": seconds, "right": right}


def _right(model: str, adapter: str | None, task: Task, test: Path) -> str:
    result = shears.evaluate(model, adapter=adapter, data=str(test), **task.evaluation)
    return as_text(result.records, task.correct)


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        by_way = {row["way"]: row for row in rows if row["task"] == task}
        print(f"\n| {task} | as it is | to {REFERENCE} | with its recovery | to {REFERENCE}'s |")
        print("| --- | --- | --- | --- | --- |")
        for way, row in by_way.items():
            cells = [text for model in ("sparse", "recovery") for text in _cells(row, by_way[REFERENCE], model)]
            print(f"| {way} | {' | '.join(cells)} |")


def _cells(row: Mapping[str, Any], reference: Mapping[str, Any], model: str) -> tuple[str, str]:
    if model not in row["right"]:
        return "-", "-"
    bits = as_bits(row["right"][model])
    others = as_bits(reference["right"][model])
    share, low, high = (100 * value for value in pooled_accuracy([bits]))
    gap, below, above = (100 * value for value in paired_difference([bits], [others]))
    apart = "-" if row is reference else f"{gap:+.1f} ({below:.1f} to {above:.1f})"
    return f"{share:.1f} % ({low:.1f} to {high:.1f}), {len(bits)}", apart


if __name__ == "__main__":
    main()
