"""Every way of training resumes without a trace and loads as what was trained; nothing spoilt is saved."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.adapt import train as train_module
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from shears.errors import InputError
from shears.models import devices
from shears.records.folders import partial_folder
from shears.sparsity.sparsify import sparsify
from shears.training.checkpoints import last_whole_checkpoint
from shears.training.fit import StepTrainer
from tests.models.foreign import Armed
from tests.tiny import save_tiny
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_close, assert_same, log, stop_after

IDS = torch.arange(40).view(2, 20)
WAYS: dict[str, dict[str, Any]] = {
    "uniform, split": {"sampling": "uniform", "micro_batch_size": 2, "dropout": 0.1},
    "recomputed": {"recompute": True},
    "recovery, uniform": {"init": "recovery", "sampling": "uniform"},
    "sparse adapter": {"sparse_adapter": True},
    "for int4": {"quantize_aware": "int4"},
}


@pytest.fixture(scope="module")
def sparse(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model with its recovery."""
    folder = tmp_path_factory.mktemp("variants")
    save_tiny(folder / "dense")
    settings: dict[str, Any] = {"method": "wanda", "num_samples": 4, "sequence_length": 32, "recover_rank": 6}
    return sparsify(folder / "dense", folder / "sparse", calibration=data, precision="fp32", device="cpu", **settings)


@dataclass(frozen=True)
class Trained:
    """An undisturbed training in one of the ways."""

    settings: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module", params=WAYS)
def trained(
    request: pytest.FixtureRequest, sparse: Path, data: str, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    settings = {**SETTINGS, **WAYS[request.param], "data": data}
    return Trained(settings, train(sparse, tmp_path_factory.mktemp("trained") / "whole", **settings))


def test_an_interruption_leaves_no_trace_in(
    trained: Trained, sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(sparse, tmp_path / "stopped", **trained.settings)
    torn = partial_folder(tmp_path / "stopped") / "checkpoints" / "checkpoint-3"
    torn.mkdir()
    (torn / "optimizer.pt").touch()  # of a checkpoint that a kill left without its mark
    assert_same(trained.folder, train(sparse, tmp_path / "stopped", **trained.settings))


def test_what_is_loaded_is_what_was_trained(trained: Trained, sparse: Path, tmp_path: Path) -> None:
    """In memory, after the last step, at the largest ranks."""
    kept: list[Tensor] = []
    fit: Any = train_module.fit  # type: ignore[attr-defined]

    def then_keep(training: Any, *rest: Any) -> None:
        fit(training, *rest)
        kept.append(logits(training.model.eval()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "fit", then_keep)
        train(sparse, tmp_path / "again", **trained.settings)
    loaded = load_super_adapter(trained.folder)
    loaded.elastic.activate(loaded.elastic.space.maximal())
    torch.testing.assert_close(logits(loaded.model), kept[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    """Logits of a fixed batch."""
    result: Tensor = model(input_ids=IDS).logits
    return result


def test_splits_and_recomputation_make_the_same_steps(base: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    settings = {**SETTINGS, "sampling": "uniform", "dropout": 0.1}
    plain = undisturbed(**settings)
    assert_same(plain, train(base, tmp_path / "recomputed", data=undisturbed.data, recompute=True, **settings))
    one, other = undisturbed(**SETTINGS), undisturbed(**SETTINGS, micro_batch_size=1)
    assert [line["loss"] for line in log(one)] == pytest.approx([line["loss"] for line in log(other)], rel=1e-5)
    assert_close(one, other)


@pytest.mark.parametrize("spoilt", ["adapt.train.write_super_adapter", "training.checkpoints.write_card"])
def test_stopped_after_the_last_step_none_is_repeated(
    spoilt: str, base: Path, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(**SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(f"shears.{spoilt}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", data=undisturbed.data, **SETTINGS)
    monkeypatch.setattr(StepTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    resumed = train(base, tmp_path / "stopped", data=undisturbed.data, **SETTINGS)
    assert_same(whole, resumed)
    assert (resumed / "search_space.json").read_bytes() == (whole / "search_space.json").read_bytes()
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_resume_needs_the_same_data_base_and_settings(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, rows = tmp_path / "own", tmp_path / "rows.jsonl"
    shutil.copytree(base, own)
    shutil.copy(data, rows)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(own, tmp_path / "out", data=str(rows), **SETTINGS)
    with pytest.raises(InputError, match=r"learning_rate was 0\.01 and is now 0\.001"):
        train(own, tmp_path / "out", data=str(rows), **{**SETTINGS, "learning_rate": 1e-3})
    rows.write_text(rows.read_text() * 2)
    with pytest.raises(InputError, match="data_sha256 was '.*' and is now"):
        train(own, tmp_path / "out", data=str(rows), **SETTINGS)
    shutil.copy(data, rows)
    shutil.rmtree(own)
    save_tiny(own, seed=5)
    with pytest.raises(InputError, match="base_fingerprint was '.*' and is now"):
        train(own, tmp_path / "out", data=str(rows), **SETTINGS)


@pytest.mark.parametrize("figure", ["loss", "norm of the gradients"])
def test_a_figure_that_is_not_finite_stops_its_step_and_an_earlier_state_is_kept(
    figure: str, base: Path, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = StepTrainer.training_step

    def spoilt(self: StepTrainer, model: Any, *arguments: Any, **keywords: Any) -> Tensor:
        loss = training_step(self, model, *arguments, **keywords)
        if self.state.global_step == 4:
            if figure == "loss":
                self.figures[0] = float("nan")
            next(weight for weight in model.parameters() if weight.grad is not None).grad[0, 0] = float("nan")
        return loss

    settings = {**SETTINGS, "data": undisturbed.data}
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "training_step", spoilt)
        with pytest.raises(InputError, match=f"the {figure} must be finite, got nan at step 5; .*checkpoint-4 keeps"):
            train(base, tmp_path / "out", **settings)
    assert last_whole_checkpoint(partial_folder(tmp_path / "out")) is not None
    with pytest.raises(InputError, match=r"finite.*at step \d+.*learning rate"):
        train(base, tmp_path / "diverging", **{**settings, "learning_rate": 1e30, "max_steps": 30})
    assert_same(undisturbed(**SETTINGS), train(base, tmp_path / "out", **settings))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_would_run_code_is_refused(
    name: str, base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "out", data=data, **SETTINGS)
    checkpoint = last_whole_checkpoint(partial_folder(tmp_path / "out"))
    assert checkpoint is not None
    torch.save(Armed(tmp_path / "ran"), checkpoint / name)
    with pytest.raises(InputError, match="must hold tensors and plain values, got: Weights only load failed"):
        train(base, tmp_path / "out", data=data, **SETTINGS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "case", [("auto", True, torch.bfloat16), ("auto", False, torch.float32), ("fp32", True, torch.float32)]
)
def test_forwards_run_in_the_configured_precision(
    case: tuple[str, bool, torch.dtype], base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, has_bf16, expected = case
    dtypes: set[torch.dtype] = set()
    training_step = StepTrainer.training_step

    def listening(self: StepTrainer, model: Any, *arguments: Any, **keywords: Any) -> Tensor:
        linear = model.get_base_model().get_submodule("model.layers.0.mlp.gate_proj")
        linear.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
        return training_step(self, model, *arguments, **keywords)

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as accelerate launch sets it from its own file
    monkeypatch.setattr(devices, "bf16_is_faster", lambda kind: has_bf16)
    monkeypatch.setattr(StepTrainer, "training_step", listening)
    train(base, tmp_path / "out", data=data, **{**SETTINGS, "max_steps": 2, "precision": precision})
    assert dtypes == {expected}
