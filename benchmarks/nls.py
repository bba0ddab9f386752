"""Compares NLS with LoRA at equal budgets (initialisation, alpha, SparsePEFT), paired over seeds and tasks.

    python -m benchmarks.nls run --data FOLDER --task mawps --arms lora,nls-recovery --seeds 0,1,2 --epochs 1 --work DIR
    python -m benchmarks.nls table --results FILE.jsonl

FOLDER is that of benchmarks.tasks. Runs that are already in the results are skipped. Several
processes may share DIR, each with its own --results and arms. No test runs it: it needs the data.
Old results also have arms of samplings that were removed.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shears
from benchmarks.report import MODEL, add_row, as_bits, as_text, begin, paired_table, parser_of, rows_of, seeds, words
from benchmarks.tasks import TASKS, Task, unseen
from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.super_adapter import load_super_adapter
from shears.data.examples import load_examples, tokenize_all
from shears.evaluation.likelihood import completion_nats
from shears.evaluation.statistics import pooled_accuracy
from shears.models.devices import autocast
from shears.training.batches import padding

BUDGET: Mapping[str, Any] = {"alpha": 64, "learning_rate": 1e-3, "batch_size": 16, "sampling": "uniform"}
RANKS = (32, 24, 16)
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A way to train; the loss on validation examples is measured at the largest, middle and smallest ranks of each.

    `dense` trains on the unpruned model. `measured` are the ranks whose accuracy is measured.
    `merged` measures the merged model with the base's zeros: exact if the adapter was masked, else
    projected. `pruning` are the settings of the sparse model if it is not by Wanda on 32 sequences.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dense: bool = False
    merged: bool = False
    recover_by: str = "norms"
    pruning: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[str, ...] = ("heuristic",)

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the keywords of `shears.train`, except data, seed and epochs."""
        return {**BUDGET, "ranks": RANKS, **self.settings}

    @property
    def base(self) -> str:
        """Return the name of the sparse model that the arm trains on; arms with the same name share it."""
        parts = [key if value is True else str(value) for key, value in self.pruning.items()]
        return "-".join(["sparse", self.recover_by, *parts])


def _lora(rank: int = 32, **settings: Any) -> dict[str, Any]:
    return {"ranks": (rank,), **settings}


ALL = ("heuristic", "maximal", "minimal")
RECOVERY: Mapping[str, Any] = {"init": "recovery"}
MOMENTS = "moments"
RECONSTRUCT: Mapping[str, Any] = {"reconstruct": "linear"}
BEST: Mapping[str, Any] = {"method": "admm", "allocation": "sensitivity", "num_samples": 120}
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("dense-lora", _lora(), dense=True),
        Arm("dense-lora-alpha128", _lora(alpha=128), dense=True),
        Arm("lora", _lora()),
        Arm("lora-alpha128", _lora(alpha=128)),
        Arm("lora-projected", _lora(), merged=True),
        Arm("lora-recovery", _lora(**RECOVERY)),
        Arm("nls", measured=ALL),
        Arm("nls-alpha128", {"alpha": 128}),
        Arm("nls-recovery", RECOVERY, measured=ALL),
        Arm("sparse-peft", {"sparse_adapter": True}, merged=True),
        Arm("sparse-peft-alpha128", {"sparse_adapter": True, "alpha": 128}, merged=True),
        Arm("lora-moments", _lora(**RECOVERY), recover_by=MOMENTS),
        Arm("lora-moments-alpha128", _lora(**RECOVERY, alpha=128), recover_by=MOMENTS),
        Arm("lora-moments-lr2e-3", _lora(**RECOVERY, learning_rate=2e-3), recover_by=MOMENTS),
        Arm("lora-moments-projected", _lora(**RECOVERY), recover_by=MOMENTS, merged=True),
        Arm("lora24-moments", _lora(24, alpha=48, **RECOVERY), recover_by=MOMENTS),
        Arm("lora16-moments", _lora(16, alpha=32, **RECOVERY), recover_by=MOMENTS),
        Arm("nls-moments", RECOVERY, recover_by=MOMENTS, measured=ALL),
        Arm("lora-reconstruct", _lora(), recover_by=MOMENTS, pruning=RECONSTRUCT),
        Arm("lora-moments-reconstruct", _lora(**RECOVERY), recover_by=MOMENTS, pruning=RECONSTRUCT),
        Arm("lora-best", _lora(), recover_by=MOMENTS, pruning=BEST),
        Arm("lora-moments-best", _lora(**RECOVERY), recover_by=MOMENTS, pruning=BEST),
    )
}
CURRICULUM = "nls-moments-curriculum"
"""An arm of old results, whose sampling was removed: from the largest ranks to all."""
CLAIMS: Mapping[str, Sequence[str]] = {
    "dense-lora": (
        "lora", "lora-moments", "lora-moments-reordered", "lora-reconstruct", "lora-moments-reconstruct", "lora-best",
        "lora-moments-best", "nls-recovery", "nls-moments", CURRICULUM, f"{CURRICULUM}-best", "dense-lora-pissa",
        "dense-lora-alpha128",
    ),
    "dense-lora-alpha128": (
        "lora-alpha128", "lora-moments", "lora-moments-alpha128", CURRICULUM, f"{CURRICULUM}-alpha128",
    ),
    "dense-lora-pissa": ("lora-pissa", "lora-moments", CURRICULUM),
    "lora": (
        "lora-recovery", "lora-moments", "lora-pissa", "lora-alpha128", "lora-projected", "lora-reconstruct",
        "lora-best", "nls", "nls-curriculum", "nls-alpha128",
    ),
    "lora-alpha128": ("nls-alpha128",),
    "lora-pissa": ("lora-moments",),
    "lora-recovery": ("lora-moments", "nls-recovery"),
    "lora-moments": (
        "lora-moments-reordered", "lora-moments-projected", "lora-moments-reconstruct", "lora-moments-best",
        "lora-moments-alpha128", "lora-moments-lr2e-3", "lora-reconstruct", "nls-moments", CURRICULUM,
        f"{CURRICULUM}-32-28-24",
    ),
    "lora-moments-reordered": (CURRICULUM,),
    "lora-moments-alpha128": (f"{CURRICULUM}-alpha128",),
    "lora-moments-lr2e-3": (f"{CURRICULUM}-lr2e-3",),
    "lora-moments-best": (f"{CURRICULUM}-best",),
    "lora-best": ("lora-moments-best",),
    "lora-projected": ("sparse-peft-alpha128",),
    "nls": ("sparse-peft", "sparse-peft-alpha128", "nls-alpha128", "nls-curriculum"),
    "nls-alpha128": ("sparse-peft-alpha128",),
    "sparse-peft": ("sparse-peft-alpha128",),
    CURRICULUM: tuple(f"{CURRICULUM}-{change}" for change in ("32-28-24", "lr2e-3", "best", "alpha128")),
}  # fmt: skip
"""The arms that are compared with each arm, at the heuristic's ranks."""


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command == "table":
        print("\n".join(table([unseen(row) for row in rows_of(*arguments.results)])))
        return
    begin()
    task = TASKS[arguments.task]
    work = arguments.work / task.name
    data = task.write(arguments.data, work)
    for seed in arguments.seeds:
        for name in arguments.arms:
            key = {"task": task.name, "arm": name, "seed": seed, "epochs": arguments.epochs}
            if key not in [{part: row[part] for part in key} for row in rows_of(arguments.results[0])]:
                base = _base(work, data["train"], ARMS[name])
                add_row(arguments.results[0], key | _run(ARMS[name], task, data, base, key, work))


def _base(work: Path, text: Path, arm: Arm) -> Path:
    """Return the model pruned to 50 % (by Wanda unless the arm names another method), with its recovery."""
    base = work / arm.base
    if not base.exists():
        settings = {"num_samples": 32, "sequence_length": 512, "recover_rank": 40, **arm.pruning}
        shears.sparsify(MODEL, base, calibration=str(text), recover_by=arm.recover_by, **settings)
    return base


def _run(arm: Arm, task: Task, data: Mapping[str, Path], base: Path, key: Mapping[str, Any], work: Path) -> Row:
    """Train an arm; return its losses, its accuracies and whether each answer is right."""
    model = MODEL if arm.dense else str(base)
    adapter = work / f"{arm.name}-seed{key['seed']}-epochs{key['epochs']:g}"
    start = time.monotonic()
    if not adapter.exists():
        shears.train(
            model, adapter, data=str(data["train"]), seed=key["seed"], epochs=key["epochs"],
            max_length=task.max_length, **arm.keywords,
        )  # fmt: skip
    seconds = round(time.monotonic() - start, 1)
    row: Row = {"seconds": seconds, "losses": validation_losses(adapter, data["validation"], _ends)}
    measured = {ranks: _records(arm, task, data["test"], adapter, model, ranks) for ranks in arm.measured}
    readings = {"right": task.correct} if task.correct == "correct" else {"right": task.correct, "summed": "correct"}
    for name, key_of in readings.items():
        row[name] = {ranks: as_text(records, key_of) for ranks, records in measured.items()}
    shares = {ranks: bits.count("1") / len(bits) for ranks, bits in row["right"].items()}
    print({**key, "losses": row["losses"], **shares}, flush=True)
    return row


def validation_losses(
    adapter: Path, validation: Path, configs: Callable[[SearchSpace], Mapping[str, RankConfig]]
) -> dict[str, float]:
    """Return the loss per completion token on the validation examples, in nats, for named rank configurations."""
    loaded = load_super_adapter(adapter)
    examples = load_examples(str(validation), loaded.record["template"], loaded.tokenizer)
    rows = tokenize_all(examples, loaded.tokenizer, 4096)
    losses = {}
    for name, ranks in configs(loaded.elastic.space).items():
        loaded.elastic.activate(ranks)
        with autocast("auto", "cpu"):
            nats, counts = completion_nats(loaded.model, rows, padding(loaded.tokenizer), batch_size=32)
        losses[name] = float(nats.sum() / counts.sum())
    return losses


def _ends(space: SearchSpace) -> dict[str, RankConfig]:
    return {"maximal": space.maximal(), "heuristic": space.heuristic(), "minimal": space.minimal()}


def _records(arm: Arm, task: Task, test: Path, adapter: Path, model: str, ranks: str) -> list[dict[str, Any]]:
    folder = adapter.with_name(f"{adapter.name}-{ranks}")
    if not folder.exists():
        shears.export_adapter(adapter, folder, ranks=ranks, format="merged-sparse" if arm.merged else "peft")
    subject = (str(folder), None) if arm.merged else (model, str(folder))
    evaluated = shears.evaluate(subject[0], adapter=subject[1], data=str(test), **task.evaluation)
    if arm.merged:
        shutil.rmtree(folder)  # a whole model
    return evaluated.records


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one table of arms and one of differences for every task and number of epochs.

    If a run is given twice, the last one counts.
    """
    rows = list({(row["task"], row["arm"], row["seed"], row["epochs"]): row for row in rows}.values())
    for task, epochs in sorted({(row["task"], row["epochs"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["epochs"]) == (task, epochs)]
        yield f"\n### {task}, {epochs:g} epochs\n"
        yield "| arm | ranks | accuracy | 95 % interval | n x seeds | validation loss, per seed | seconds |"
        yield "| --- " * 7 + "|"
        by_arm = {arm: [row for row in chosen if row["arm"] == arm] for arm in dict.fromkeys(r["arm"] for r in chosen)}
        for arm_rows in by_arm.values():
            yield from _arm_lines(arm_rows)
        bits = {arm: {row["seed"]: [as_bits(row["right"]["heuristic"])] for row in by_arm[arm]} for arm in by_arm}
        yield from paired_table([
            (f"{one} against {other}", bits.get(one, {}), bits.get(other, {}))
            for other, ones in CLAIMS.items() for one in ones
        ])  # fmt: skip


def _arm_lines(rows: Sequence[Row]) -> Iterator[str]:
    seconds = ", ".join(f"{row['seconds']:.0f}" for row in rows)
    for ranks in rows[0]["losses"]:
        losses = ", ".join(f"{row['losses'][ranks]:.4f}" for row in rows)
        figures = "- | - | -"
        if runs := [as_bits(row["right"][ranks]) for row in rows if ranks in row["right"]]:
            value, low, high = pooled_accuracy(runs)
            figures = f"{value:.1%} | {low:.1%} to {high:.1%} | {len(runs[0])} x {len(runs)}"
        yield f"| {rows[0]['arm']} | {ranks} | {figures} | {losses} | {seconds} |"


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(TASKS), default="mawps")
    parser.add_argument("--arms", type=words, default=["dense-lora", "lora", "nls", "lora-moments", "nls-moments"])
    parser.add_argument("--seeds", type=seeds, default=[0])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("runs/nls"), help="keep and reuse the artifacts here")
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("nls.jsonl")])
    return parser.parse_args()


if __name__ == "__main__":
    main()
