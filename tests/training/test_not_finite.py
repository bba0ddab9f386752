"""A loss that is not finite ends training before the update; the state of the earlier steps is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shears.adapt.train import train
from shears.errors import InputError
from shears.records.folders import partial_folder
from shears.training.checkpoints import last_whole_checkpoint
from shears.training.trainer import StepTrainer
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, log, stop_after, weights

RARELY = {**SETTINGS, "save_steps": 50, "dropout": 0.1}


def spoil(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of a step nan, with gradients that are nan too."""
    training_step = StepTrainer.training_step

    def spoilt(self: StepTrainer, model: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = training_step(self, model, *arguments, **keywords)
        if self.state.global_step == step - 1:
            self.step_loss = float("nan")
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(StepTrainer, "training_step", spoilt)


def test_a_loss_that_is_not_finite_names_its_step(base: Path, data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"finite.*at step \d+.*learning rate"):
        train(base, tmp_path / "out", data=data, **{**SETTINGS, "learning_rate": 1e30, "max_steps": 30})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", [4, 6])  # inside an epoch, and the first of the second
def test_the_state_before_a_loss_that_is_not_finite_is_saved_and_resumes(
    step: int, base: Path, data: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil(step, patch)
        with pytest.raises(InputError, match=f"nan at step {step}; .*checkpoint-{step - 1} keeps the state after step"):
            train(base, tmp_path / "out", data=data, **RARELY)
    with monkeypatch.context() as patch:
        stop_after(step - 1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", data=data, **{**RARELY, "save_steps": step - 1})
    kept, expected = (
        last_whole_checkpoint(partial_folder(tmp_path / name) / "checkpoints") for name in ("out", "stopped")
    )
    assert kept is not None
    assert expected is not None
    assert kept.name == expected.name == f"checkpoint-{step - 1}"
    for name, tensor in weights(expected).items():
        assert torch.equal(weights(kept)[name], tensor)
    assert [line["step"] for line in log(partial_folder(tmp_path / "out"))] == list(range(1, step))
    assert_same(undisturbed(**RARELY), train(base, tmp_path / "out", data=data, resume=True, **RARELY))


def test_a_state_that_is_already_saved_is_not_saved_again(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(5, monkeypatch)
    with monkeypatch.context() as patch:
        patch.delattr(StepTrainer, "save_state")
        with pytest.raises(InputError, match=r"got nan at step 5; train to another output with a lower learning rate"):
            train(base, tmp_path / "out", data=data, **SETTINGS)
    checkpoints = partial_folder(tmp_path / "out") / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    with pytest.raises(InputError, match=r"learning_rate was 0\.01 and is now 0\.001"):
        train(base, tmp_path / "out", data=data, resume=True, **{**SETTINGS, "learning_rate": 1e-3})


def test_without_a_finite_state_no_checkpoint_is_named(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(1, monkeypatch)
    with pytest.raises(InputError, match=r"got nan at step 1; .*\(no earlier step was saved\)"):
        train(base, tmp_path / "first", data=data, **SETTINGS)
    step_figures = StepTrainer.step_figures

    def unseen_at_first(self: StepTrainer) -> tuple[float, int]:
        if self.state.global_step:
            return step_figures(self)
        self.gradient_norm = 1.0
        return 1.0, 1

    monkeypatch.setattr(StepTrainer, "step_figures", unseen_at_first)
    with pytest.raises(InputError, match=r"got nan at step 2; .*\(no earlier step was saved\)"):  # its weights are nan
        train(base, tmp_path / "spoilt", data=data, **RARELY)
    assert not list((partial_folder(tmp_path / "spoilt") / "checkpoints").glob("*"))
