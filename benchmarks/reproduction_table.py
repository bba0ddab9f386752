"""Prints the accuracies and paired differences of benchmarks.reproduction, and the paper's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper import LORA_MATH, SEARCH_MATH, SPARSITY_MATH
from benchmarks.rightness import as_bits
from shears.evaluation.statistics import Bits, bootstrap_difference, holm, paired_difference, pooled_accuracy

Row = dict[str, Any]
STARTS = {"lora": "PEFT's start", "recovery": "recovery by norms"}
"""Names of the starts that the results call otherwise."""
AGAINST_HEURISTIC = ("hill-climbing", "rnsga2", "maximal", "minimal")


def print_tables(rows: Sequence[Row]) -> None:
    """Print the accuracies and the paired differences of each task and number of epochs."""
    groups = {(row["task"], row["epochs"]) for row in rows}
    for task, epochs in sorted(groups):
        chosen = [row for row in rows if (row["task"], row["epochs"]) == (task, epochs)]
        print(f"\n### {task}, {epochs:g} epoch{'s' * (epochs != 1)}\n")
        print("| sparsity | adapter | start | ranks | accuracy | 95 % interval | n x seeds | accuracy by seed |")
        print("| --- " * 8 + "|")
        for arm, runs in arms_of(chosen).items():
            value, low, high = pooled_accuracy(list(runs.values()))
            sparsity, adapter, init, ranks = arm
            size = f"{len(next(iter(runs.values())))} x {len(runs)}"
            seeds = ", ".join(f"{sum(bits) / len(bits):.1%}" for bits in runs.values())
            line = f"| {sparsity:.0%} | {adapter} | {STARTS.get(init, init)} | {ranks} | {value:.1%}"
            print(f"{line} | {low:.1%} to {high:.1%} | {size} | {seeds} |")
        _print_differences(arms_of(chosen))
    print(f"\n{SPARSITY_MATH}\n{LORA_MATH}\n{SEARCH_MATH}")


Arm = tuple[float, str, str, str]


def arms_of(rows: Sequence[Row]) -> dict[Arm, dict[int, Bits]]:
    """Return the bits of every arm by seed, in the order of sparsity."""
    arms: dict[Arm, dict[int, Bits]] = {}
    for row in sorted(rows, key=lambda row: (row["sparsity"], row["adapter"], row["init"], row["seed"])):
        for ranks, bits in row["right"].items():
            arm = (row["sparsity"], row["adapter"], row["init"], ranks)
            arms.setdefault(arm, {})[row["seed"]] = as_bits(bits)
    return arms


def _print_differences(arms: Mapping[Arm, Mapping[int, Bits]]) -> None:
    """Print NLS against LoRA, search against the heuristic, sparse against dense, the recovery against PEFT's start."""
    lines = [line for title, one, other in _claims(arms) if (line := _line(arms, title, one, other))]
    if not lines:
        return
    print("\n| difference, paired by example | points | 95 % interval | p | p (Holm) | seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (start, p, seeds), corrected in zip(lines, holm([p for _, p, _ in lines]), strict=True):
        print(f"{start} | {p:.4f} | {corrected:.4f} | {seeds} |")


def _claims(arms: Mapping[Arm, object]) -> list[tuple[str, Arm, Arm]]:
    claims = []
    dense = (0.0, "lora", "lora", "heuristic")
    for arm in arms:
        sparsity, adapter, init, ranks = arm
        name = f"{sparsity:.0%}, {STARTS.get(init, init)}"
        heuristic = (sparsity, adapter, init, "heuristic")
        if adapter == "lora" and sparsity:
            claims.append((f"{name}: LoRA against dense LoRA", arm, dense))
            claims.append(
                (f"{name}: LoRA against LoRA from PEFT's start", arm, (sparsity, adapter, _plain(init), ranks))
            )
        if adapter.startswith("SparsePEFT"):
            claims.append((f"{name}: {adapter}, merged, against NLS un-merged", arm, (sparsity, "nls", init, ranks)))
        if not adapter.startswith("nls"):
            continue
        own = "NLS" if adapter == "nls" else "NLS in a curriculum"
        if ranks in AGAINST_HEURISTIC:
            claims.append((f"{name}: {own}, {ranks} against heuristic", arm, heuristic))
        if ranks == "heuristic":
            claims.append((f"{name}: {own} against LoRA", arm, (sparsity, "lora", init, "heuristic")))
            claims.append((f"{name}: {own} against dense LoRA", arm, dense))
    return [claim for claim in claims if claim[1] != claim[2]]


def _plain(init: str) -> str:
    """Return PEFT's start on the same pruned model."""
    _, comma, base = init.partition(", ")
    return f"PEFT's start, {base}" if comma else "lora"


def _line(arms: Mapping[Arm, Mapping[int, Bits]], title: str, one: Arm, other: Arm) -> tuple[str, float, str] | None:
    seeds = sorted(arms.get(one, {}).keys() & arms.get(other, {}).keys())
    if not seeds:
        return None
    runs, others = ([arms[arm][seed] for seed in seeds] for arm in (one, other))
    value, low, high = (100 * each for each in paired_difference(runs, others))
    p = bootstrap_difference(runs, others).p
    return f"| {title} | {value:+.1f} | {low:+.1f} to {high:+.1f}", p, ", ".join(map(str, seeds))
