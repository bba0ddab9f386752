"""Training beside a teacher: the loss is the one that is told, and all that held without a teacher holds with one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shears.adapt.train import read_training_rows, train
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.data.examples import IGNORED
from shears.errors import InputError
from shears.models.ref import resolve
from shears.training.teacher import TeacherSource, find_teacher
from tests.oracles import distillation as oracle
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.conftest import write_data
from tests.training.small_training import SETTINGS, assert_same, log, stop_after

FEW = {**SETTINGS, "max_steps": 3}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Examples of each test's own: what a teacher says of them is kept beside them."""
    return write_data(tmp_path)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Another tiny model, whose predictions are far from uniform."""
    folder = save_tiny(tmp_path / "teacher", "llama_untied", seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_parameter("lm_head.weight").data.mul_(40)
    model.save_pretrained(folder)
    return folder


def logits_of(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    return logits


def test_the_first_steps_loss_is_that_of_labels_and_teacher(
    base: Path, teacher: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new adapter changes nothing, so that an oracle computes the loss from the two models alone."""
    monkeypatch.setattr("shears.training.teacher.TOP_K", 5)
    settings = {**SETTINGS, "max_steps": 3, "batch_size": 18}
    train(base, tmp_path / "adapter", data=data, teacher=str(teacher), **settings)
    expected = 0.0
    count = 0
    rows = read_training_rows(resolve(base), build(TrainConfig, "train", {**SETTINGS, "data": data})).train
    for row in rows:
        said, says = logits_of(base, row.input_ids), logits_of(teacher, row.input_ids)
        for place, label in enumerate(row.labels):
            if label == IGNORED:
                continue
            student, teachers = (oracle.probabilities(logits[place - 1].tolist()) for logits in (said, says))
            kept = says[place - 1].topk(5).indices.tolist()
            buckets = [oracle.in_buckets(each, kept) for each in (student, teachers)]
            expected += 0.5 * -torch.tensor(student[label]).log().item() + 0.5 * oracle.divergence(*buckets)
            count += 1
    assert log(tmp_path / "adapter")[0]["loss"] == pytest.approx(expected / count, rel=1e-3)


def test_a_resumed_training_is_the_undisturbed_one_though_the_teacher_moved(
    base: Path, teacher: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "sampling": "uniform", "max_steps": 5}
    whole = train(base, tmp_path / "whole", data=data, teacher=str(teacher), **settings)
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "cut", data=data, teacher=str(teacher), **settings)
    moved = teacher.rename(tmp_path / "moved")
    assert_same(whole, train(base, tmp_path / "cut", data=data, teacher=str(moved), **settings))
    record = json.loads((whole / "search_space.json").read_text())
    assert record["teacher_fingerprint"] == resolve(moved).fingerprint


def test_an_adapter_on_the_dense_model_teaches(
    base: Path, teacher: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = train(teacher, tmp_path / "dense", data=data, **{**SETTINGS, "ranks": (4,), "max_steps": 3})
    source = find_teacher(adapter)
    assert source.fingerprint.startswith(f"{resolve(teacher).fingerprint}-")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        difference = source.load()(ids).logits - find_teacher(teacher).load()(ids).logits
    assert float(difference.abs().max()) > 0.01
    folder = train(base, tmp_path / "taught", data=data, teacher=str(adapter), **FEW)
    monkeypatch.setattr(TeacherSource, "load", None)  # the validation of another run reads the same targets
    other = {**FEW, "learning_rate": 1e-3}
    again = train(base, tmp_path / "again", data=data, teacher=str(adapter), **other)
    assert log(again)[-1]["loss"] != log(folder)[-1]["loss"]


def test_another_vocabulary_is_refused_before_anything_is_written(base: Path, data: str, tmp_path: Path) -> None:
    larger = save_tiny(tmp_path / "larger", vocab_size=300)
    with pytest.raises(InputError, match=r"larger has 300 tokens, .*base has 257 or others; use the model"):
        train(base, tmp_path / "out", data=data, teacher=str(larger), **SETTINGS)
    other = save_tiny(tmp_path / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(other)
    with pytest.raises(InputError, match="a teacher must have the same vocabulary"):
        train(base, tmp_path / "out", data=data, teacher=str(other), **SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"larger", "other", "train.jsonl"}
