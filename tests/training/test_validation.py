"""Validation: its loss is that of the largest ranks, changes no step, and decides the same after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import split_off, train
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.errors import InputError
from shears.models.ref import load_tokenizer, resolve
from shears.records.artifacts import read_json
from shears.training.fit import StepTrainer
from tests.oracles.losses import mean_completion_loss
from tests.tiny import save_tiny
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, log, stop_after, weights

EPOCH_OF_TWO: dict[str, Any] = {**SETTINGS, "batch_size": 9, "dropout": 0.1}  # of 18 examples


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four examples of unequal length, of which none is trained on."""
    path = tmp_path_factory.mktemp("held") / "validation.jsonl"
    rows = [{"prompt": f"{a}-" + "2" * a, "completion": f" {a}" * a} for a in range(1, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def losses_of(folder: Path) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in log(folder) if "validation_loss" in line}


@pytest.mark.parametrize("way", [{"sampling": "uniform"}, {"sparse_adapter": True, "dropout": 0.0}])
def test_the_loss_is_that_of_the_saved_adapter_at_its_largest_ranks(
    base: Path, data: str, held_out: str, tmp_path: Path, way: dict[str, Any]
) -> None:
    output = train(base, tmp_path / "out", data=data, validation=held_out, **{**EPOCH_OF_TWO, **way})
    losses = losses_of(output)
    assert list(losses) == [2, 4, 6, 7]
    adapter = load_super_adapter(output)
    adapter.elastic.activate(adapter.elastic.space.maximal())
    tokenizer = load_tokenizer(resolve(base))
    rows = tokenize_all(load_examples(held_out, "question", tokenizer), tokenizer, 512)
    assert losses[7] == pytest.approx(mean_completion_loss(adapter.model, rows, 0, 1), rel=1e-5)
    assert read_json(output / "search_space.json")["validation"] == {"step": 7, "loss": losses[7]}


def test_validation_changes_no_step(
    base: Path, data: str, held_out: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    plain = undisturbed(**EPOCH_OF_TWO)
    validated = train(base, tmp_path / "validated", data=data, validation=held_out, **EPOCH_OF_TWO)
    assert all(torch.equal(tensor, weights(validated)[name]) for name, tensor in weights(plain).items())
    assert [{**line, "validation_loss": 0} for line in log(plain)] == [
        {**line, "validation_loss": 0} for line in log(validated)
    ]


def falling_until(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the validation loss fall until a step, then rise."""
    monkeypatch.setattr(StepTrainer, "validation_loss", lambda self: abs(self.state.global_step - step) + 1.0)


@pytest.mark.parametrize("last_step", [4, 7])
def test_early_stopping_keeps_the_best_adapter_whatever_interrupts_it(
    base: Path, undisturbed: Undisturbed, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    """The loss is lowest after step 4; two more validations are waited for."""
    settings = {**EPOCH_OF_TWO, "save_steps": 3, "data": undisturbed.data, "validation": held_out, "early_stopping": 2}
    settings |= {"max_steps": 12, "sampling": "uniform"}
    falling_until(4, monkeypatch)
    whole = train(base, tmp_path / "whole", **settings)
    assert losses_of(whole) == {2: 3.0, 4: 1.0, 6: 3.0, 8: 5.0}
    record = read_json(whole / "search_space.json")
    assert (record["num_steps"], record["validation"]) == (8, {"step": 4, "loss": 1.0})
    with monkeypatch.context() as patch:
        stop_after(last_step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", **settings)
    assert_same(whole, train(base, tmp_path / "stopped", **{**settings, "save_steps": 50}))
    seen: list[dict[str, torch.Tensor]] = []

    def noted(self: StepTrainer) -> float:
        seen.append({name: each.detach().clone() for name, each in self._trained()})
        return 1.0

    monkeypatch.setattr(StepTrainer, "validation_loss", noted)
    train(base, tmp_path / "last", **{**settings, "early_stopping": 20})
    kept = {name: tensor for name, tensor in seen[1].items() if "lora_" in name}
    assert all(torch.equal(tensor, weights(whole)[name.replace(".default", "")]) for name, tensor in kept.items())


def test_a_share_of_the_rows_is_validated_and_not_trained_on(base: Path, data: str, tmp_path: Path) -> None:
    rows = [Tokenized([index], [index]) for index in range(18)]
    trained, validated = split_off(rows, 0.2, 0)
    assert len(validated) == 4
    assert sorted([*trained, *validated], key=lambda row: row.input_ids) == rows
    assert split_off(rows, 0.2, 0) == (trained, validated) != split_off(rows, 0.2, 1)
    output = train(base, tmp_path / "out", data=data, validation=0.2, **SETTINGS)
    assert list(losses_of(output)) == [4, 7]  # an epoch of 14 examples has four steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 2}, "early_stopping needs validation examples, got none; for example, add validation=0.05"),
        ({"validation": 1.5}, "validation must be a file, a hub id or a share between 0 and 1, got 1.5"),
        ({"validation": "-"}, "validation must be other examples than data, both are -"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(TrainConfig, "train", {"data": "-", **settings})


def test_a_validation_file_with_the_rows_of_the_data_is_refused_under_any_name(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}')
    (tmp_path / "copy.jsonl").write_bytes(rows.read_bytes())
    model = save_tiny(tmp_path / "model")
    with pytest.raises(InputError, match="train.validation must be other examples than data, got the same rows"):
        train(model, tmp_path / "out", data=str(rows), validation=f"{tmp_path}/copy.jsonl")
    assert not list(tmp_path.glob("out*"))
