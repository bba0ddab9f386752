"""Training: the base never changes, a step is a step however it is split, and an interruption leaves no trace."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shears.adapt import train as adapt_train
from shears.adapt.elastic import ranks_of_step
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, stop_after


def test_stock_peft_loads_a_super_adapter(base: Path, undisturbed: Undisturbed) -> None:
    output = undisturbed(**SETTINGS)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    ours = load_super_adapter(output)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(stock(input_ids=ids).logits, ours.model(input_ids=ids).logits)


def test_the_log_holds_every_step_with_the_ranks_of_seed_and_step(base: Path, data: str, tmp_path: Path) -> None:
    output = train(base, tmp_path / "out", data=data, seed=5, sampling="uniform", **SETTINGS)
    lines = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    space = load_super_adapter(output).elastic.space
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert [line["ranks"] for line in lines] == [dict(ranks_of_step("uniform", space, 5, step)) for step in range(7)]
    assert all(line["tokens"] > 0 and line["learning_rate"] >= 0 for line in lines)


def test_frozen_linears_in_bf16_give_the_bits_of_autocast(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "precision": "bf16", "max_steps": 3}
    held = train(base, tmp_path / "held", data=data, **settings)
    called: list[str] = []
    monkeypatch.setattr(adapt_train, "narrow_linears", lambda model, precision: called.append(precision))
    converted = train(base, tmp_path / "converted", data=data, **settings)
    assert called == ["bf16"]
    assert_same(held, converted)


def test_a_resume_may_move_the_base_and_rename_the_data(
    base: Path, data: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "stopped", data=data, **SETTINGS)
    shutil.copytree(base, tmp_path / "moved")
    shutil.copyfile(data, tmp_path / "renamed.jsonl")
    monkeypatch.chdir(tmp_path)
    changes = {"data": "./renamed.jsonl", "save_steps": SETTINGS["save_steps"] + 1}
    assert_same(undisturbed(**SETTINGS), train("moved", "./stopped", **{**SETTINGS, **changes}))


def test_a_moved_run_still_finds_its_base(base: Path, data: str, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "base")
    train(own, tmp_path / "out", data=data, **{**SETTINGS, "max_steps": 3})
    moved = tmp_path / "moved"
    moved.mkdir()
    own.rename(moved / "base")
    (tmp_path / "out").rename(moved / "out")
    assert load_super_adapter(moved / "out").elastic.space.max_rank == 6
