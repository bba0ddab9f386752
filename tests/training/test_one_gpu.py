"""A process without a launcher trains on one GPU, the configured one, however many there are."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from shears.config import TrainConfig
from shears.training.loop import training_arguments


@pytest.mark.parametrize(("device", "used"), [("cuda:1", 1), ("cuda", 0), ("auto", 0)])
def test_without_a_launcher_one_gpu_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, used: int
) -> None:
    caplog.set_level("INFO")
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    try:
        settings = TrainConfig(data="-", batch_size=4, learning_rate=1e-3, device=device, precision="fp32")
        arguments = training_arguments(settings, tmp_path, 1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # it took the machine for one with GPUs
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4
    assert arguments.device == torch.device("cuda", used) == current[-1]
    assert ("one of 2 GPUs" in caplog.text) == (device != "cuda:1")
