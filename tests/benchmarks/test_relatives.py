"""The benchmark of the adapters' forms: sizes are paired by parameters, not by ranks."""

from argparse import Namespace
from typing import Any

from benchmarks.relatives import FACTORS, sizes_of, table, way_of


def row(kind: str, way: str, **more: Any) -> dict[str, Any]:
    """A cell as the benchmark writes it."""
    return {"kind": kind, "way": f"{way}-nested", "rate": 1e-3, "seed": 0, **more}


def test_sizes_are_paired_by_parameters() -> None:
    settings = Namespace(sampling="nested", batch_size=16, warmup_steps=10)
    ranks = {name: way_of(name, settings).ranks for name in FACTORS}
    assert ranks == {"lora": (32, 24, 16, 8), "polar": (32, 24, 16, 8), "lokr-2": (64, 48, 32, 16), "lokr-4": (64, 32)}
    assert sizes_of("lokr-4") == (16, 8)
    rows = [
        row("tuning", "lora", losses={"32": 0.5, "24": 0.5, "16": 0.6, "8": 0.7}),
        row("tuning", "lokr-4", losses={"64": 0.4, "32": 0.45}),
        row("tuning", "lokr-4", losses={"64": 0.3, "32": 0.35}, rate=4e-3),
        row("test", "lora", right={"32": "1110", "24": "1110", "16": "1100", "8": "1000"}),
        row("test", "lokr-4", right={"64": "1110", "32": "1110"}),
        {"kind": "cost", "seconds": {"lora": [9.0, 1.0, 1.0], "polar": [9.0, 1.5, 1.5]}},
    ]
    lines = list(table(rows))
    assert "| lora | 0.001 | 0.5000 | 0.5000 | 0.6000 | 0.7000 |" in lines
    assert "| lokr-4 | 0.004 | - | - | 0.3000 | 0.3500 |" in lines  # the better rate
    accuracies = next(line for line in lines if line.startswith("| lokr-4 | 0.001 |"))
    assert "75.0 %, +25.0 (" in accuracies
    assert "75.0 %, +50.0 (" in accuracies
    assert lines[-1] == "seconds a step, over LoRA's: lora 1.00, polar 1.50"
