"""The forwards of a training run in the configured precision."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shears.adapt.train import train
from shears.models import devices
from shears.training import loop
from tests.training.small_training import SETTINGS


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (("auto", True, "no"), torch.bfloat16),
        (("auto", False, "no"), torch.float32),
        (("fp32", True, "no"), torch.float32),
        (("fp32", True, "bf16"), torch.float32),
    ],
)
def test_forwards_of_a_training_run_in(
    requested: tuple[str, bool, str], expected: torch.dtype, base: Path, data: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    precision, has_bf16, launcher = requested
    dtypes: list[torch.dtype] = []
    trained = loop._trainer

    def listening(*arguments: Any) -> Any:
        trainer = trained(*arguments)  # what it tries of the model is over
        linear = arguments[0].weights.model.get_base_model().get_submodule("model.layers.0.mlp.gate_proj")
        linear.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
        return trainer

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)  # as accelerate launch sets it from its own file
    monkeypatch.setattr(devices, "bf16_is_faster", lambda kind: has_bf16)
    monkeypatch.setattr(loop, "_trainer", listening)
    settings = {**SETTINGS, "max_steps": 2, "precision": precision, "recompute": "none"}
    train(base, tmp_path / "out", data=data, **settings)
    assert dtypes == [expected] * 2
