"""Trackers are off by default, write beside the artifact, and are refused where they are not installed."""

import importlib.util
from pathlib import Path

import pytest

import shears
from shears.adapt.trackers import FOLDER, prepare_trackers
from shears.errors import InputError
from shears.recipe import TrainConfig
from shears.resolve import build
from tests.tiny import save_tiny


def test_no_tracker_sees_a_training_unless_asked() -> None:
    assert TrainConfig(data="-").report_to == ()
    with pytest.raises(InputError, match="train.report_to must be of tensorboard, trackio, wandb, got 'mlflow'"):
        build(TrainConfig, "train", {"data": "-", "report_to": "mlflow"})


def test_a_tracker_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="report_to wandb needs the package wandb, .*; pip install wandb"):
        prepare_trackers(["wandb"], tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_beside_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    save_tiny(tmp_path / "base")
    shears.train(str(tmp_path / "base"), tmp_path / "super", data="arithmetic:train", ranks=(4, 2), max_steps=2,
                 batch_size=2, device="cpu", report_to=("tensorboard",))  # fmt: skip
    assert [path.name.split(".")[0] for path in (tmp_path / "super_tensorboard").rglob("events*")] == ["events"]
    assert not list((tmp_path / "super").rglob("events*"))
    monkeypatch.delenv(FOLDER)
