"""Compares NLS with LoRA at equal budgets (initialisation, sampling, SparsePEFT), paired over seeds and tasks.

    python -m benchmarks.nls run --data FOLDER --task mawps --arms lora,nls-recovery --seeds 0,1,2 --epochs 1 --work DIR
    python -m benchmarks.nls table --results FILE.jsonl

FOLDER holds mawps/, ARC-Easy/, openbookqa/, boolq/ in LLM-Adapters' form. Runs that are already in the results are
skipped. Several processes may share DIR, each with its own --results and arms. No test runs it: it needs the data.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import shears
from benchmarks.held_out import unseen
from benchmarks.nls_arms import ARMS, Arm
from benchmarks.nls_table import print_table
from benchmarks.nls_tasks import TASKS, Task
from benchmarks.report import add_row, environment, log_to_stderr, rows_of
from benchmarks.rightness import as_text
from shears.adapt.load import load_super_adapter
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.evaluation.scoring.score import plainly
from shears.evaluation.scoring.scorers import LossScorer
from shears.models.devices import autocast
from shears.training.batches import padding

MODEL = "smollm2-135m"


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command == "table":
        print_table([unseen(row) for path in arguments.results for row in rows_of(path)])
        return
    log_to_stderr()
    print(environment(), flush=True)
    task = TASKS[arguments.task]
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = task.write(arguments.data, arguments.work / task.name)
    for seed in arguments.seeds:
        for name in arguments.arms:
            key = {"task": task.name, "arm": name, "seed": seed, "epochs": arguments.epochs}
            if key not in [{part: row[part] for part in key} for row in rows_of(arguments.results[0])]:
                base = _base(arguments.work / task.name, data["train"], ARMS[name])
                row = key | _run(ARMS[name], task, data, base, key, arguments.work / task.name)
                add_row(arguments.results[0], row)


def _base(work: Path, text: Path, arm: Arm) -> Path:
    """Return the model pruned to 50 % (by Wanda unless the arm names another method), with its recovery."""
    base = work / arm.base
    if not base.exists():
        settings = {"num_samples": 32, "sequence_length": 512, "recover_rank": 40, **arm.pruning}
        shears.sparsify(MODEL, base, calibration=str(text), recover_by=arm.recover_by, **settings)
    return base


def _run(
    arm: Arm, task: Task, data: Mapping[str, Path], base: Path, key: Mapping[str, Any], work: Path
) -> dict[str, Any]:
    """Train an arm; return its losses, its accuracies and whether each answer is right."""
    model = MODEL if arm.dense else str(base)
    adapter = work / f"{arm.name}-seed{key['seed']}-epochs{key['epochs']:g}"
    start = time.monotonic()
    if not adapter.exists():
        shears.train(
            model, adapter, resume=True, data=str(data["train"]), seed=key["seed"], epochs=key["epochs"],
            max_length=task.max_length, **arm.keywords,
        )  # fmt: skip
    row: dict[str, Any] = {
        "seconds": round(time.monotonic() - start, 1),
        "losses": _losses(adapter, data["validation"]),
    }
    measured = {ranks: _records(arm, task, data, adapter, model, ranks) for ranks in arm.measured}
    readings = {"right": task.correct} if task.correct == "correct" else {"right": task.correct, "summed": "correct"}
    for name, key_of in readings.items():
        row[name] = {ranks: as_text(records, key_of) for ranks, records in measured.items()}
    shares = {ranks: bits.count("1") / len(bits) for ranks, bits in row["right"].items()}
    print({**key, "losses": row["losses"], **shares}, flush=True)
    return row


def mean_loss(model: nn.Module, rows: Sequence[Tokenized], pad_id: int) -> float:
    """Return the loss per labelled token over all rows, in nats."""
    scorer = LossScorer(model, rows, pad_id, batch_size=32)
    return float(scorer.measure(0, plainly).sum() / scorer.weights.sum())


def _losses(adapter: Path, validation: Path) -> dict[str, float]:
    """Return the loss per completion token on the validation examples, for three rank configurations."""
    loaded = load_super_adapter(adapter)
    examples = load_examples(str(validation), loaded.record["template"], loaded.tokenizer)
    rows = tokenize_all(examples, loaded.tokenizer, 4096)
    losses = {}
    for name in ("maximal", "heuristic", "minimal"):
        loaded.elastic.activate(getattr(loaded.elastic.space, name)())
        with autocast("auto", "cpu"):
            losses[name] = mean_loss(loaded.model, rows, padding(loaded.tokenizer))
    return losses


def _records(
    arm: Arm, task: Task, data: Mapping[str, Path], adapter: Path, model: str, ranks: str
) -> list[dict[str, Any]]:
    folder = adapter.with_name(f"{adapter.name}-{ranks}")
    if not folder.exists():
        shears.export_adapter(adapter, folder, ranks=ranks, format="merged-sparse" if arm.merged else "peft")
    evaluated = (
        shears.evaluate(str(folder), data=str(data["test"]), **task.evaluation)
        if arm.merged
        else shears.evaluate(model, adapter=str(folder), data=str(data["test"]), **task.evaluation)
    )
    if arm.merged:
        shutil.rmtree(folder)  # a whole model
    return evaluated.records


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(TASKS), default="mawps")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS)[:6])
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("runs/nls"), help="keep and reuse the artifacts here")
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("nls.jsonl")])
    return parser.parse_args()


if __name__ == "__main__":
    main()
