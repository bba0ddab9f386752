"""MAWPS at equal budgets: dense and sparse 0-shot, sparse + LoRA, sparse + NLS (heuristic, hill climbing).

    python -m benchmarks.mawps --data FOLDER [--seeds 0] [--epochs 1] [--output DIR]

FOLDER holds trainset.json, validset.json and test.json of LLM-Adapters' MAWPS. No test runs it: it needs the data.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shears
from benchmarks.nls import BUDGET
from benchmarks.report import MODEL, as_bits, as_text, environment, log_to_stderr, paired_table, parser_of
from benchmarks.tasks import write_mawps
from shears.evaluation.records import Evaluation

LORA = "sparse + LoRA, rank 32"


def main() -> None:
    """Run everything and print the table."""
    arguments = _arguments()
    log_to_stderr()
    work = Path(arguments.output or tempfile.mkdtemp(prefix="mawps-"))
    work.mkdir(parents=True, exist_ok=True)
    data = write_mawps(arguments.data, work)
    print(environment())
    base = work / "sparse"
    calibration = {"calibration": str(data["train"]), "num_samples": 32, "sequence_length": 512}
    seconds = {"sparsify": _once(base, lambda: shears.sparsify(MODEL, base, **calibration))}
    results = {"dense, 0-shot": _measure(MODEL, None, data), "sparse 50 %, 0-shot": _measure(base, None, data)}
    for seed in arguments.seeds:
        results |= _adapters(base, work / f"seed-{seed}", data, {"seed": seed, "epochs": arguments.epochs}, seconds)
    _print(results, seconds)


def _adapters(
    base: Path, work: Path, data: dict[str, Path], budget: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Evaluation]:
    """Train plain LoRA and NLS with one budget; measure LoRA, the heuristic and the searched sub-adapter."""
    work.mkdir(exist_ok=True)
    settings = {**BUDGET, **budget, "data": str(data["train"])}
    tag = f"seed {budget['seed']}"
    lora = work / "lora"
    nls = work / "nls"
    searched = work / "search"
    search: dict[str, Any] = {"data": str(data["validation"]), "max_evaluations": 20, "limit": 100}
    seconds[f"train LoRA, {tag}"] = _once(lora, lambda: shears.train(base, lora, ranks=(32,), **settings))
    seconds[f"train NLS, {tag}"] = _once(nls, lambda: shears.train(base, nls, ranks=(32, 24, 16), **settings))
    seconds[f"search, {tag}"] = _once(searched, lambda: shears.search(nls, searched, **search))
    parts = {"LoRA, rank 32": (lora, "maximal"), "NLS, maximal": (nls, "maximal"), "NLS, heuristic": (nls, "heuristic"),
             "NLS, minimal": (nls, "minimal"), "NLS, hill climbing": (nls, str(searched / "result.json"))}  # fmt: skip
    results = {}
    for name, (adapter, ranks) in parts.items():
        folder = work / name.replace(", ", "-").replace(" ", "-")
        _once(folder, lambda a=adapter, r=ranks, f=folder: shears.export_adapter(a, f, ranks=r))  # type: ignore[misc]
        results[f"sparse + {name}, {tag}"] = _measure(base, folder, data)
    return results


def _once(folder: Path, make: Callable[[], object]) -> float:
    """Make an artifact unless an earlier call with the same --output made it; return the seconds."""
    start = time.monotonic()
    if not folder.exists():
        make()
    return time.monotonic() - start


def _measure(model: Path | str, adapter: Path | None, data: dict[str, Path]) -> Evaluation:
    return shears.evaluate(str(model), adapter=str(adapter) if adapter else None, task="equation",
                           data=str(data["test"]), max_new_tokens=32)  # fmt: skip


def _print(results: dict[str, Evaluation], seconds: dict[str, float]) -> None:
    print("\n| model | equation accuracy | 95 % interval | n |\n| --- | --- | --- | --- |")
    bits: dict[str, dict[int, list[list[bool]]]] = {}
    for name, result in results.items():
        low, high = result.ci95
        print(f"| {name} | {result.value:.1%} | {low:.1%} to {high:.1%} | {result.n} |")
        arm, _, seed = name.partition(", seed ")
        if seed:
            bits.setdefault(arm, {})[int(seed)] = [as_bits(as_text(result.records))]
    pairs = [(f"{arm} minus {LORA}", runs, bits[LORA]) for arm, runs in bits.items() if arm != LORA]
    print("\n".join(paired_table(pairs)))
    print("\n" + "; ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", help="keep and reuse the artifacts here")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


if __name__ == "__main__":
    main()
