"""Training: the base never changes, a step is a step however it is split, and an interruption leaves no trace."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shears.adapt.elastic import ranks_of_step
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from shears.config import TrainConfig
from shears.records.folders import partial_folder
from shears.training.fit import fit
from tests.adapt.prepared import prepared_on
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, stop_after


@dataclass(frozen=True)
class Stopped:
    """An undisturbed training, and the same one stopped after five steps."""

    base: Path
    data: str
    whole: Path
    work: Path

    def copied(self, folder: Path) -> Path:
        """Copy the stopped one; return the output that it was to have."""
        shutil.copytree(self.work, partial_folder(folder / "stopped"))
        return folder / "stopped"


@pytest.fixture(scope="module")
def stopped(base: Path, data: str, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    whole = undisturbed(**SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, folder / "stopped", data=data, **SETTINGS)
    return Stopped(base, data, whole, partial_folder(folder / "stopped"))


def test_training_leaves_every_bit_of_the_base_and_lowers_the_loss(base: Path, data: str, tmp_path: Path) -> None:
    settings = TrainConfig(data=data, **{**SETTINGS, "max_steps": 24})
    elastic, training = prepared_on(base, settings)
    before = {name: tensor.clone() for name, tensor in elastic.model.state_dict().items() if "lora_" not in name}
    (tmp_path / "work").mkdir()
    fit(training, tmp_path / "work", settings)
    after = elastic.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    zeros = sum(int((tensor == 0).sum()) for name, tensor in before.items() if "mlp" in name)
    assert zeros > 4000
    lines = (tmp_path / "work" / "training_log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])  # the head of a random model stays random


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


def test_a_resume_may_move_the_base_and_rename_the_data(
    stopped: Stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped.copied(tmp_path)
    shutil.copytree(stopped.base, tmp_path / "moved")
    shutil.copyfile(stopped.data, tmp_path / "renamed.jsonl")
    monkeypatch.chdir(tmp_path)
    changes = {"data": "./renamed.jsonl", "save_steps": SETTINGS["save_steps"] + 1}
    assert_same(stopped.whole, train("moved", "./stopped", **{**SETTINGS, **changes}))


def test_a_moved_run_still_finds_its_base(base: Path, data: str, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "base")
    train(own, tmp_path / "out", data=data, **{**SETTINGS, "max_steps": 3})
    moved = tmp_path / "moved"
    moved.mkdir()
    own.rename(moved / "base")
    (tmp_path / "out").rename(moved / "out")
    assert load_super_adapter(moved / "out").elastic.space.max_rank == 6
