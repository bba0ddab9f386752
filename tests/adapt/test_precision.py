"""The arithmetic of a training's forwards is the one asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shears import models
from shears.adapt import fit
from shears.adapt.ready import Ready
from shears.adapt.train import train
from tests.adapt.training import SETTINGS


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [("auto", True, torch.bfloat16), ("auto", False, torch.float32), ("fp32", True, torch.float32)],
)
@pytest.mark.usefixtures("base")
def test_forwards_of_a_training_run_in(
    precision: str, has_bf16: bool, expected: torch.dtype, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.dtype] = []
    trained = fit._trainer

    def listening(ready: Ready, *arguments: Any) -> Any:
        trainer = trained(ready, *arguments)  # what it tries of the model is over
        linear = ready.model.get_base_model().get_submodule("model.layers.0.mlp.gate_proj")
        linear.register_forward_hook(lambda _, __, output: found.append(output.dtype))
        return trainer

    monkeypatch.setattr(models, "_has_bf16", lambda kind: has_bf16)
    monkeypatch.setattr(fit, "_trainer", listening)
    settings = {**SETTINGS, "max_steps": 2, "precision": precision, "recompute": False}
    train(tmp_path / "base", tmp_path / "out", data=data, **settings)
    assert found == [expected] * 2
