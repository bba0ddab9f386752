"""Validation: its loss is that of the largest ranks, changes no step, and decides alike after any interruption."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

from shears.adapt.load import load_super_adapter
from shears.adapt.prepare import split_off
from shears.adapt.train import train
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import Tokenized, load_examples, tokenize_all
from shears.errors import InputError
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import read_json
from shears.training.validation import Validation, ValidationLosses, Validator, own_module
from tests.tiny import save_tiny
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, log, pad_batches, stop_after, weights

EVERY_TWO: dict[str, Any] = {**SETTINGS, "validation_every": 2, "dropout": 0.1}


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    """Four examples of unequal length, of which none is trained on."""
    path = tmp_path / "validation.jsonl"
    rows = [{"prompt": f"{a}-" + "2" * a, "completion": f" {a}" * a} for a in range(1, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def losses_of(folder: Path) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in log(folder) if "validation_loss" in line}


@pytest.mark.parametrize("way", [{"sampling": "uniform"}, {"micro_batch_size": 1, "sparse_adapter": True}])
def test_the_loss_is_that_of_the_saved_adapter_at_its_largest_ranks(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    if way.get("sparse_adapter"):
        pad_batches(monkeypatch)
    settings = {**EVERY_TWO, "dropout": 0.0 if way.get("sparse_adapter") else 0.1, **way}
    output = train(base, tmp_path / "out", data=data, validation=held_out, **settings)
    losses = losses_of(output)
    assert list(losses) == [2, 4, 6, 7]
    adapter = load_super_adapter(output)
    adapter.elastic.activate(adapter.elastic.space.maximal())
    tokenizer = load_tokenizer(resolve(base))
    sums = tokens = 0.0
    for row in tokenize_all(load_examples(held_out, "question", tokenizer), tokenizer, 512):
        with torch.no_grad():
            logits = adapter.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        sums += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        tokens += int((labels >= 0).sum())
    assert losses[7] == pytest.approx(sums / tokens, rel=1e-5)
    assert read_json(output / "search_space.json")["validation"] == {"step": 7, "loss": losses[7]}


def test_validation_changes_no_step(
    base: Path, data: str, held_out: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    plain = undisturbed(**SETTINGS, dropout=0.1)
    validated = train(base, tmp_path / "validated", data=data, validation=held_out, **EVERY_TWO)
    assert all(torch.equal(tensor, weights(validated)[name]) for name, tensor in weights(plain).items())
    assert [{**line, "validation_loss": 0} for line in log(plain)] == [
        {**line, "validation_loss": 0} for line in log(validated)
    ]
    assert "validation" not in read_json(plain / "search_space.json")


def falling_until(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the validation loss fall until a step, then rise."""
    monkeypatch.setattr(Validator, "loss", lambda self: abs(self.trainer.state.global_step - step) + 1.0)


def test_early_stopping_keeps_the_best_adapter(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is lowest after step 4; two more validations are waited for."""
    settings = {**EVERY_TWO, "max_steps": 10, "data": data, "validation": held_out, "sampling": "uniform"}
    falling_until(4, monkeypatch)
    stopped = train(base, tmp_path / "stopped", early_stopping=2, **settings)
    assert losses_of(stopped) == {2: 3.0, 4: 1.0, 6: 3.0, 8: 5.0}
    record = read_json(stopped / "search_space.json")
    assert (record["num_steps"], record["validation"]) == (8, {"step": 4, "loss": 1.0})
    seen: dict[int, dict[str, torch.Tensor]] = {}
    keep = Validator.validate

    def noted(self: Validator, step: int) -> float:
        tensors = get_peft_model_state_dict(own_module(self.trainer))
        seen[step] = {name: tensor.clone() for name, tensor in tensors.items()}
        return keep(self, step)

    monkeypatch.setattr(Validator, "validate", noted)
    last = train(base, tmp_path / "last", **settings)
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in weights(stopped).items())
    assert all(torch.equal(tensor, seen[10][name]) for name, tensor in weights(last).items())


@pytest.mark.parametrize("last_step", [4, 6])
def test_an_interruption_leaves_no_trace(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    """Resumed from step 3, where the adapter of step 2 is the best, though that of step 4 was seen; and from step 6."""
    settings = {
        **EVERY_TWO,
        "max_steps": 12,
        "save_steps": 3,
        "data": data,
        "validation": held_out,
        "early_stopping": 2,
    }
    falling_until(4, monkeypatch)
    whole = train(base, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(last_step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", **settings)
    kept = [path.name for path in (tmp_path / "stopped.partial" / "checkpoints").glob("best-*")]
    assert sorted(kept) == ["best-2.safetensors", "best-4.safetensors"]  # the first is that of checkpoint 3
    resumed = train(base, tmp_path / "stopped", resume=True, **{**settings, "save_steps": 50})
    assert_same(whole, resumed)
    one, other = (read_json(folder / "search_space.json") for folder in (whole, resumed))
    assert one["validation"] == other["validation"] == {"step": 4, "loss": 1.0}


def test_a_training_that_was_over_is_not_continued(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last checkpoint and the saving of the adapter."""
    settings = {**EVERY_TWO, "max_steps": 12, "data": data, "validation": held_out, "early_stopping": 1}
    falling_until(2, monkeypatch)
    whole = train(base, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr("shears.adapt.train.write_super_adapter", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", **settings)
    monkeypatch.setattr(Validator, "loss", lambda self: pytest.fail("validated again"))
    assert_same(whole, train(base, tmp_path / "stopped", resume=True, **settings))


def test_a_share_of_the_rows_is_validated_and_not_trained_on(base: Path, data: str, tmp_path: Path) -> None:
    rows = [Tokenized([index], [index]) for index in range(18)]
    trained, validated = split_off(rows, 0.2, 0)
    assert len(validated) == 4
    assert sorted([*trained, *validated], key=lambda row: row.input_ids) == rows
    assert split_off(rows, 0.2, 0) == (trained, validated) != split_off(rows, 0.2, 1)
    assert [len(part) for part in split_off(rows, 0.001, 0)] == [17, 1]
    output = train(base, tmp_path / "out", data=data, validation=0.2, **SETTINGS)
    assert list(losses_of(output)) == [4, 7]  # an epoch of 14 examples has four steps
    with pytest.raises(InputError, match="validation by a share needs at least two examples, got 1"):
        split_off(rows[:1], 0.2, 0)


def test_a_loss_that_is_not_finite_stops_the_training(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "loss", lambda _: math.nan)
    with pytest.raises(InputError, match="the validation loss must be finite, got nan after step 2"):
        train(base, tmp_path / "out", data=data, validation=held_out, **EVERY_TWO)


def test_other_validation_examples_are_refused_by_a_resume(
    base: Path, data: str, held_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "out", data=data, validation=held_out, **SETTINGS)
    monkeypatch.undo()
    moved = Path(held_out).rename(tmp_path / "moved.jsonl")
    with Path(moved).open("a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(InputError, match="validation_sha256 was"):
        train(base, tmp_path / "out", data=data, validation=str(moved), resume=True, **SETTINGS)


def test_what_follows_is_a_function_of_the_losses() -> None:
    losses = ValidationLosses({2: 3.0, 4: 2.0, 6: 2.0, 8: 2.5}, patience=2)
    assert losses.best == 4
    assert losses.is_over
    assert not losses.until(6).is_over
    assert not ValidationLosses(losses.by_step).is_over
    assert ValidationLosses({}).best is None
    assert [step for step in range(1, 8) if Validation((), 3, 7, None, nullcontext).is_due(step)] == [3, 6, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 2}, "early_stopping needs validation, got none; add a file, or a share"),
        ({"validation_every": 2}, "validation_every needs validation, got none"),
        ({"validation": 1.5}, "validation must be a source of rows or a share between 0 and 1, got 1.5"),
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
    (tmp_path / "link.jsonl").symlink_to(rows)
    model = save_tiny(tmp_path / "model")
    for name in ("copy.jsonl", "link.jsonl", "../" + tmp_path.name + "/rows.jsonl"):
        with pytest.raises(InputError, match="train.validation must be other examples than data, got the same rows"):
            train(model, tmp_path / "out", data=str(rows), validation=f"{tmp_path}/{name}")
    assert not list(tmp_path.glob("out*"))
