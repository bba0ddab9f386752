"""Shared by the tests of training: small settings, an interruption, comparisons of runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shears.quantization.training import GRIDS
from shears.training import fit

SETTINGS: dict[str, Any] = {
    "ranks": (6, 4, 2), "alpha": 12, "max_steps": 7, "save_steps": 2, "batch_size": 4, "learning_rate": 1e-2,
    "warmup_steps": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors."""
    tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    return tensors


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the training log."""
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    grids = [(folder / GRIDS).read_bytes() if (folder / GRIDS).is_file() else b"" for folder in (one, other)]
    assert grids[0] == grids[1]
    assert (one / "training_log.jsonl").read_text() == (other / "training_log.jsonl").read_text()


def assert_close(one: Path, other: Path) -> None:
    """But for rounding. Adam divides by the gradient's own size, so that 1e-7 grows where gradients are near zero."""
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-3, atol=2e-4)


def stop_after(last_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training end like a Ctrl-C after a step was logged."""
    on_step_end = fit.Steps.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == last_step + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit.Steps, "on_step_end", stop)
