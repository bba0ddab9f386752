"""Between the last step and the finished folder: an interruption there repeats and loses nothing."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shears.adapt import train as train_module
from shears.adapt.train import train
from shears.errors import InputError
from shears.records import folders
from shears.records.artifacts import read_json, write_json
from shears.records.folders import partial_folder
from shears.training import stage
from shears.training.checkpoints import last_whole_checkpoint
from shears.training.step_log import StepLog
from shears.training.trainer import StepTrainer
from tests.models.foreign import Armed
from tests.tiny import save_tiny
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, weights

LENGTHS = [{"max_steps": 7}, {"max_steps": None, "epochs": 1.5}]


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("length", LENGTHS)
def test_stopped_after_the_last_checkpoint_no_step_is_repeated(
    length: dict[str, Any],
    base: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = undisturbed(**{**SETTINGS, **length})
    settings = {**SETTINGS, **length, "data": undisturbed.data}
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_super_adapter", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", **settings)
    resumed = train(base, tmp_path / "stopped", resume=True, **settings)
    assert_same(whole, resumed)
    assert (resumed / "search_space.json").read_bytes() == (whole / "search_space.json").read_bytes()


@pytest.mark.parametrize(
    ("owner", "spoilt"),
    [
        (stage, {"shutil": SimpleNamespace(rmtree=_interrupted)}),
        (stage, {"write_card": _interrupted}),
        (folders, {"sync_tree": _interrupted}),
    ],
)
def test_stopped_after_the_record_is_written_nothing_is_trained_again(
    owner: Any,
    spoilt: dict[str, Any],
    base: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = undisturbed(**SETTINGS)
    with monkeypatch.context() as patch:
        for name, value in spoilt.items():
            patch.setattr(owner, name, value)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", data=undisturbed.data, **SETTINGS)
    with pytest.raises(InputError, match="--resume"):
        train(base, tmp_path / "stopped", data=undisturbed.data, **SETTINGS)
    monkeypatch.setattr(train_module, "fit", _interrupted)
    resumed = train(base, tmp_path / "stopped", resume=True, data=undisturbed.data, **SETTINGS)
    assert_same(whole, resumed)
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_resume_needs_the_same_data_and_base(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, rows = tmp_path / "own", tmp_path / "rows.jsonl"
    shutil.copytree(base, own)
    shutil.copy(data, rows)
    settings = {**SETTINGS, "data": str(rows)}
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_super_adapter", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(own, tmp_path / "out", **settings)
    rows.write_text(rows.read_text() * 2)
    with pytest.raises(InputError, match="data_sha256 was '.*' and is now"):
        train(own, tmp_path / "out", resume=True, **settings)
    shutil.copy(data, rows)
    shutil.rmtree(own)
    save_tiny(own, seed=5)
    with pytest.raises(InputError, match="base_fingerprint was '.*' and is now"):
        train(own, tmp_path / "out", resume=True, **settings)
    shutil.rmtree(own)
    shutil.copytree(base, own)
    record = read_json(train(own, tmp_path / "out", resume=True, **settings) / "search_space.json")
    assert record["data_sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()


def _spoil_gradient(model: Any) -> None:
    next(weight for weight in model.parameters() if weight.grad is not None).grad[0, 0] = float("nan")


@pytest.mark.parametrize("step", [4, 7])
def test_gradients_that_are_not_finite_stop_a_step_with_a_finite_loss(
    step: int, base: Path, data: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = StepTrainer.training_step

    def spoilt(self: StepTrainer, model: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = training_step(self, model, *arguments, **keywords)
        if self.state.global_step == step - 1:
            _spoil_gradient(model)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "training_step", spoilt)
        with pytest.raises(InputError, match=f"norm of the gradients must be finite, got nan at step {step}; train"):
            train(base, tmp_path / "out", data=data, **SETTINGS)
    _assert_kept(step - 1, tmp_path)
    resumed = train(base, tmp_path / "out", data=data, resume=True, **SETTINGS)
    assert_same(undisturbed(**SETTINGS), resumed)


@pytest.mark.parametrize(("step", "kept"), [(4, 2), (7, 6)])
def test_weights_that_are_not_finite_are_not_saved(
    step: int,
    kept: int,
    base: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_step_end = StepLog.on_step_end

    def spoilt(self: StepLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        on_step_end(self, args, state, control, **keywords)
        if state.global_step == step:
            next(weight for weight in keywords["model"].parameters() if weight.requires_grad).data[0, 0] = float("inf")

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_step_end", spoilt)
        with pytest.raises(InputError, match=f"trained weights must be finite, got .*lora_.* after step {step}; train"):
            train(base, tmp_path / "out", data=undisturbed.data, **SETTINGS)
    _assert_kept(kept, tmp_path)
    resumed = train(base, tmp_path / "out", data=undisturbed.data, resume=True, **SETTINGS)
    assert_same(undisturbed(**SETTINGS), resumed)


def _assert_kept(step: int, folder: Path) -> None:
    """Check that the state after a step is the last that was kept."""
    checkpoint = last_whole_checkpoint(partial_folder(folder / "out") / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_would_run_code_is_refused(
    name: str, base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "max_steps": 2, "save_steps": 1, "data": data}
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_super_adapter", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "out", **settings)
    checkpoints = partial_folder(tmp_path / "out") / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-2")
    torch.save(Armed(tmp_path / "ran"), checkpoints / "checkpoint-1" / name)
    write_json(checkpoints / "checkpoint-1" / "whole.json", {"step": 1, "processes": 1, "sizes": {}})
    with pytest.raises(InputError, match="must hold tensors and plain values, got: Weights only load failed"):
        train(base, tmp_path / "out", resume=True, **settings)
    assert not (tmp_path / "ran").exists()
