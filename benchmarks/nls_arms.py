"""The arms of benchmarks.nls: how each trains, on which base, and at which ranks it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BUDGET: dict[str, Any] = {"alpha": 64, "learning_rate": 1e-3, "batch_size": 16, "sampling": "uniform"}
RANKS = (32, 24, 16)


@dataclass(frozen=True)
class Arm:
    """A way to train; the loss on validation examples is measured at the largest, middle and smallest ranks of each.

    `dense` trains on the unpruned model. `measured` are the ranks whose accuracy is measured. `merged` measures the
    merged model with the base's zeros: exact if the adapter was masked, else projected. `pruning` are the settings of
    the sparse model if it is not by Wanda on 32 sequences.
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
        words = [key if value is True else str(value) for key, value in self.pruning.items()]
        return "-".join(["sparse", self.recover_by, *words])


def _lora(rank: int = 32, **settings: Any) -> dict[str, Any]:
    return {"ranks": (rank,), **settings}


ALL = ("heuristic", "maximal", "minimal")
RECOVERY: dict[str, Any] = {"init": "recovery"}
CURRICULUM: dict[str, Any] = {**RECOVERY, "curriculum": 1.0}
SANDWICH: dict[str, Any] = {**RECOVERY, "sampling": "sandwich"}
RECONSTRUCT: dict[str, Any] = {"reconstruct": True}
BEST: dict[str, Any] = {"method": "admm", "allocation": "sensitivity", "num_samples": 120}
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("dense-lora", _lora(), dense=True),
        Arm("dense-lora-alpha128", _lora(alpha=128), dense=True),
        Arm("lora", _lora()),
        Arm("nls", {}, measured=ALL),
        Arm("nls-curriculum", {"curriculum": 1.0}),
        Arm("nls-alpha128", {"alpha": 128}),
        Arm("lora-alpha128", _lora(alpha=128)),
        Arm("lora-recovery", _lora(**RECOVERY)),
        Arm("nls-recovery", RECOVERY, measured=ALL),
        Arm("sparse-peft", {"sparse_adapter": True}, merged=True),
        Arm("sparse-peft-alpha128", {"sparse_adapter": True, "alpha": 128}, merged=True),
        Arm("lora-projected", _lora(), merged=True),
        Arm("lora-moments", _lora(**RECOVERY), recover_by="moments"),
        Arm("lora-moments-alpha128", _lora(**RECOVERY, alpha=128), recover_by="moments"),
        Arm("lora-moments-projected", _lora(**RECOVERY), recover_by="moments", merged=True),
        Arm("nls-moments", RECOVERY, recover_by="moments", measured=ALL),
        Arm("nls-moments-sandwich", SANDWICH, recover_by="moments"),
        Arm("nls-moments-per-example", {**RECOVERY, "sampling": "per-example"}, recover_by="moments"),
        Arm(
            "lora-moments-reordered",
            {**RECOVERY, "sampling": "maximal", "reorder": True},
            recover_by="moments",
            measured=("heuristic", "minimal"),
        ),
        Arm("nls-moments-curriculum", CURRICULUM, recover_by="moments", measured=ALL),
        Arm("nls-moments-curriculum-alpha128", {**CURRICULUM, "alpha": 128}, recover_by="moments"),
        Arm("nls-moments-curriculum-lr2e-3", {**CURRICULUM, "learning_rate": 2e-3}, recover_by="moments"),
        Arm("nls-moments-curriculum-32-28-24", {**CURRICULUM, "ranks": (32, 28, 24)}, recover_by="moments"),
        Arm("nls-moments-sandwich-32-28-24", {**SANDWICH, "ranks": (32, 28, 24)}, recover_by="moments"),
        Arm("nls-moments-sandwich-40-32-24", {**SANDWICH, "ranks": (40, 32, 24), "alpha": 80}, recover_by="moments"),
        Arm("nls-moments-sandwich-lr2e-3", {**SANDWICH, "learning_rate": 2e-3}, recover_by="moments"),
        Arm("lora-moments-lr2e-3", _lora(**RECOVERY, learning_rate=2e-3), recover_by="moments"),
        Arm("lora24-moments", _lora(24, alpha=48, **RECOVERY), recover_by="moments"),
        Arm("lora16-moments", _lora(16, alpha=32, **RECOVERY), recover_by="moments"),
        Arm("nls-recovery-sandwich", SANDWICH),
        Arm("lora-pissa", _lora(init="pissa")),
        Arm("dense-lora-pissa", _lora(init="pissa"), dense=True),
        Arm("lora-reconstruct", _lora(), recover_by="moments", pruning=RECONSTRUCT),
        Arm("lora-moments-reconstruct", _lora(**RECOVERY), recover_by="moments", pruning=RECONSTRUCT),
        Arm("lora-best", _lora(), recover_by="moments", pruning=BEST),
        Arm("lora-moments-best", _lora(**RECOVERY), recover_by="moments", pruning=BEST),
        Arm("nls-moments-curriculum-best", CURRICULUM, recover_by="moments", pruning=BEST),
    )
}
