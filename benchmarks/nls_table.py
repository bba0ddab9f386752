"""Prints the results of benchmarks.nls: every arm over its seeds, and the paired differences behind each claim."""

from collections.abc import Sequence
from typing import Any

from benchmarks.rightness import as_bits
from shears.evaluation.statistics import paired_difference, pooled_accuracy

Row = dict[str, Any]
CLAIMS = (
    ("(a) NLS heuristic from the recovery by moments, against dense + LoRA", "nls-moments", "dense-lora"),
    ("(a) the same, sampled as a sandwich", "nls-moments-sandwich", "dense-lora"),
    ("(a) NLS heuristic from the recovery by norms, against dense + LoRA", "nls-recovery", "dense-lora"),
    ("(b) NLS heuristic against LoRA, both from the recovery by moments", "nls-moments", "lora-moments"),
    ("(b) the same, sampled as a sandwich", "nls-moments-sandwich", "lora-moments"),
    ("(a) the same, in a curriculum", "nls-moments-curriculum", "dense-lora"),
    ("(b) NLS heuristic in a curriculum, against LoRA", "nls-moments-curriculum", "lora-moments"),
    (
        "(b) NLS heuristic in a curriculum, against LoRA reordered and cut",
        "nls-moments-curriculum",
        "lora-moments-reordered",
    ),
    ("(b) LoRA reordered and cut to the heuristic ranks, against LoRA", "lora-moments-reordered", "lora-moments"),
    ("(a) LoRA reordered and cut to the heuristic ranks, against dense + LoRA", "lora-moments-reordered", "dense-lora"),
    ("(b) the same, ranks 32, 28, 24", "nls-moments-sandwich-32-28-24", "lora-moments"),
    ("(b) NLS in a curriculum, ranks 32, 28, 24, against LoRA", "nls-moments-curriculum-32-28-24", "lora-moments"),
    (
        "NLS in a curriculum, ranks 32, 28, 24 against 32, 24, 16",
        "nls-moments-curriculum-32-28-24",
        "nls-moments-curriculum",
    ),
    ("NLS in a curriculum, twice the rate against not", "nls-moments-curriculum-lr2e-3", "nls-moments-curriculum"),
    ("LoRA from the recovery, twice the rate against not", "lora-moments-lr2e-3", "lora-moments"),
    (
        "(b) NLS in a curriculum against LoRA, both at twice the rate",
        "nls-moments-curriculum-lr2e-3",
        "lora-moments-lr2e-3",
    ),
    ("(b) NLS heuristic against LoRA, both from the recovery by norms", "nls-recovery", "lora-recovery"),
    ("(b) NLS heuristic against LoRA, both from PEFT's start", "nls", "lora"),
    ("LoRA from the recovery by moments against dense + LoRA", "lora-moments", "dense-lora"),
    ("LoRA from PEFT's start against dense + LoRA", "lora", "dense-lora"),
    ("recovery by moments against PEFT's start, LoRA", "lora-moments", "lora"),
    ("recovery by norms against PEFT's start, LoRA", "lora-recovery", "lora"),
    ("PiSSA (the control) against PEFT's start, LoRA", "lora-pissa", "lora"),
    ("recovery by moments against PiSSA, LoRA", "lora-moments", "lora-pissa"),
    ("PiSSA against PEFT's start, dense + LoRA", "dense-lora-pissa", "dense-lora"),
    ("LoRA from the recovery by moments against dense + LoRA from PiSSA", "lora-moments", "dense-lora-pissa"),
    ("LoRA from PiSSA against dense + LoRA from PiSSA", "lora-pissa", "dense-lora-pissa"),
    ("(a) NLS in a curriculum from the recovery against that", "nls-moments-curriculum", "dense-lora-pissa"),
    ("recovery by moments against that by norms, LoRA", "lora-moments", "lora-recovery"),
    ("on kept weights fitted to the dense outputs against not, LoRA, PEFT's start", "lora-reconstruct", "lora"),
    ("the same, LoRA from the recovery by moments", "lora-moments-reconstruct", "lora-moments"),
    ("LoRA, PEFT's start, on fitted weights, against LoRA from the recovery", "lora-reconstruct", "lora-moments"),
    ("LoRA, PEFT's start, on fitted weights, against dense + LoRA", "lora-reconstruct", "dense-lora"),
    ("LoRA from the recovery, on fitted weights, against dense + LoRA", "lora-moments-reconstruct", "dense-lora"),
    ("on the base of admm and sensitivity against Wanda's, LoRA, PEFT's start", "lora-best", "lora"),
    ("the same, LoRA from the recovery by moments", "lora-moments-best", "lora-moments"),
    ("LoRA, PEFT's start, on the base of admm and sensitivity, against dense + LoRA", "lora-best", "dense-lora"),
    ("LoRA from the recovery, on that base, against dense + LoRA", "lora-moments-best", "dense-lora"),
    (
        "(a) NLS in a curriculum from the recovery, on that base, against dense + LoRA",
        "nls-moments-curriculum-best",
        "dense-lora",
    ),
    ("(b) NLS in a curriculum against LoRA, both on that base", "nls-moments-curriculum-best", "lora-moments-best"),
    ("NLS in a curriculum, on that base against Wanda's", "nls-moments-curriculum-best", "nls-moments-curriculum"),
    ("recovery by moments against PEFT's start, LoRA, on that base", "lora-moments-best", "lora-best"),
    ("(c) SparsePEFT merged against NLS heuristic un-merged, PEFT's start", "sparse-peft", "nls"),
    ("(c) the same, SparsePEFT with alpha 128 in place of 64", "sparse-peft-alpha128", "nls"),
    ("(c) SparsePEFT against NLS heuristic un-merged, both with alpha 128", "sparse-peft-alpha128", "nls-alpha128"),
    ("NLS heuristic un-merged, alpha 128 against 64", "nls-alpha128", "nls"),
    ("LoRA, PEFT's start, alpha 128 against 64", "lora-alpha128", "lora"),
    ("(b) NLS heuristic against LoRA, both from PEFT's start with alpha 128", "nls-alpha128", "lora-alpha128"),
    ("(b) NLS heuristic with alpha 128 against LoRA with 64, PEFT's start", "nls-alpha128", "lora"),
    ("dense + LoRA, alpha 128 against 64", "dense-lora-alpha128", "dense-lora"),
    ("LoRA, PEFT's start, against dense + LoRA, both with alpha 128", "lora-alpha128", "dense-lora-alpha128"),
    (
        "(a) NLS in a curriculum from the recovery (alpha 64) against dense + LoRA with alpha 128",
        "nls-moments-curriculum",
        "dense-lora-alpha128",
    ),
    ("LoRA from the recovery (alpha 64) against dense + LoRA with alpha 128", "lora-moments", "dense-lora-alpha128"),
    (
        "(a) NLS in a curriculum from the recovery against dense + LoRA, both with alpha 128",
        "nls-moments-curriculum-alpha128",
        "dense-lora-alpha128",
    ),
    (
        "LoRA from the recovery against dense + LoRA, both with alpha 128",
        "lora-moments-alpha128",
        "dense-lora-alpha128",
    ),
    ("LoRA from the recovery, alpha 128 against 64", "lora-moments-alpha128", "lora-moments"),
    (
        "(b) NLS in a curriculum against LoRA, both from the recovery with alpha 128",
        "nls-moments-curriculum-alpha128",
        "lora-moments-alpha128",
    ),
    (
        "NLS in a curriculum from the recovery, alpha 128 against 64",
        "nls-moments-curriculum-alpha128",
        "nls-moments-curriculum",
    ),
    ("(b) NLS in a curriculum against LoRA, both from PEFT's start", "nls-curriculum", "lora"),
    ("NLS from PEFT's start, in a curriculum against not", "nls-curriculum", "nls"),
    ("LoRA projected onto the zeros against un-merged, PEFT's start", "lora-projected", "lora"),
    ("the same, from the recovery by moments", "lora-moments-projected", "lora-moments"),
    ("SparsePEFT merged with alpha 128 against LoRA projected, PEFT's start", "sparse-peft-alpha128", "lora-projected"),
    ("SparsePEFT merged, alpha 128 against 64", "sparse-peft-alpha128", "sparse-peft"),
)


def print_table(rows: Sequence[Row]) -> None:
    """Print one table of arms and one of differences for every task and number of epochs.

    If a run is given twice, the last one counts.
    """
    rows = list({(row["task"], row["arm"], row["seed"], row["epochs"]): row for row in rows}.values())
    for task, epochs in sorted({(row["task"], row["epochs"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["epochs"]) == (task, epochs)]
        print(f"\n### {task}, {epochs:g} epochs\n")
        print("| arm | ranks | accuracy | 95 % interval | n x seeds | validation loss, per seed | seconds |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for arm in dict.fromkeys(row["arm"] for row in chosen):
            _print_arm([row for row in chosen if row["arm"] == arm])
        _print_claims(chosen)


def _print_arm(rows: Sequence[Row]) -> None:
    seconds = ", ".join(f"{row['seconds']:.0f}" for row in rows)
    for ranks in rows[0]["losses"]:
        losses = ", ".join(f"{row['losses'][ranks]:.4f}" for row in rows)
        if runs := [_bits(row, ranks) for row in rows if ranks in row["right"]]:
            value, low, high = pooled_accuracy(runs)
            figures = f"{value:.1%} | {low:.1%} to {high:.1%} | {len(runs[0])} x {len(runs)}"
        else:
            figures = "- | - | -"
        print(f"| {rows[0]['arm']} | {ranks} | {figures} | {losses} | {seconds} |")


def _print_claims(rows: Sequence[Row]) -> None:
    lines = [line for claim in CLAIMS if (line := _claim(rows, *claim))]
    if lines:
        print("\n| difference in accuracy, paired | points | 95 % interval | seeds |\n| --- | --- | --- | --- |")
        print("\n".join(lines))


def _claim(rows: Sequence[Row], title: str, one: str, other: str) -> str | None:
    by_arm = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in (one, other)}
    seeds = sorted(by_arm[one].keys() & by_arm[other].keys())
    if not seeds:
        return None
    runs = [[_bits(by_arm[arm][seed], "heuristic") for seed in seeds] for arm in (one, other)]
    value, low, high = paired_difference(*runs)
    return f"| {title} | {100 * value:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} | {', '.join(map(str, seeds))} |"


def _bits(row: Row, ranks: str) -> list[bool]:
    return as_bits(row["right"][ranks])
