"""The ways, starts and tasks of benchmarks.every_rank."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.nls_tasks import TASKS as NLS_TASKS
from benchmarks.nls_tasks import Task
from shears.data.prompts import render_completion, render_prompt

RANKS = (32, 24, 16, 8)
RATES = (5e-4, 1e-3, 2e-3)
SCALINGS = (2.0, 4.0)  # alpha over the largest rank: alpha 64 and 128 at rank 32
SEARCHED = (24, 16)  # ranks whose number of parameters bounds a search
COST_WAYS = ("lora-32", "nested", "uniform", "sandwich")  # whose steps are timed, the first against the others
GSM8K_TRAIN = 2000
GSM8K_VALIDATION = 200


@dataclass(frozen=True)
class Way:
    """A way to train; `ranks` are those that it allows, all of which are measured."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = RANKS
    same_sum: bool = False
    """Whether a cut to rank r is multiplied by largest rank / r, as a nested adapter's cuts are by their factors."""

    @property
    def is_elastic(self) -> bool:
        """Tell whether one training serves all ranks."""
        return len(self.ranks) > 1

    def keywords(self, rate: float, scaling: float) -> dict[str, Any]:
        """Return the keywords of `shears.train`, except data, seed, epochs and the start's."""
        alpha = scaling * max(self.ranks)
        return {"ranks": self.ranks, "alpha": alpha, "learning_rate": rate, "batch_size": 16, **self.settings}


WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("nested", {"sampling": "nested"}),
        Way("uniform", {"sampling": "uniform"}),
        Way("sandwich", {"sampling": "sandwich"}),
        Way("curriculum", {"sampling": "uniform", "curriculum": 1.0}),
        Way("reordered", {"sampling": "maximal", "reorder": True}),
        Way("lora-multiplied", {"sampling": "maximal"}, same_sum=True),
        *(Way(f"lora-{rank}", ranks=(rank,)) for rank in RANKS),
    )
}
STARTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "recovery": {"init": "recovery"},
    "sparse-peft": {"sparse_adapter": True},
    "dense": {},
}
"""The keywords of `shears.train` for each start; dense trains on the unpruned model."""


def ways_of(start: str, names: list[str]) -> list[Way]:
    """Return the ways that a start allows: SparsePEFT has one product a step, so no ranks by example."""
    return [WAYS[name] for name in names if not (start == "sparse-peft" and name == "sandwich")]


def _gsm8k(source: Path, target: Path) -> dict[str, Path]:
    """Write GSM8K: validation and training examples drawn from the training file by a fixed seed, the whole test."""
    target.mkdir(parents=True, exist_ok=True)
    train, test = (
        [json.loads(line) for line in (source / "gsm8k" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    random.Random(0).shuffle(train)
    parts = {
        "validation": train[:GSM8K_VALIDATION],
        "train": train[GSM8K_VALIDATION : GSM8K_VALIDATION + GSM8K_TRAIN],
        "test": test,
    }
    paths = {split: target / f"{split}.jsonl" for split in parts}
    for split, rows in parts.items():
        paths[split].write_text("".join(json.dumps(_solved(row)) + "\n" for row in rows))
    return paths


def _solved(row: Mapping[str, str]) -> dict[str, str]:
    return {
        "prompt": render_prompt("alpaca", row["question"]),
        "completion": render_completion("alpaca", row["answer"]),
        "answer": row["answer"].rsplit("####", 1)[1].strip().replace(",", ""),
    }


TASKS: Mapping[str, Task] = {
    "mawps": NLS_TASKS["mawps"],
    "arc-easy-text": NLS_TASKS["arc-easy-text"],
    "openbookqa-text": NLS_TASKS["openbookqa-text"],
    "gsm8k": Task("gsm8k", _gsm8k, {"task": "number", "max_new_tokens": 256}),
}
