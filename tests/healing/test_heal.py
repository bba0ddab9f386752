"""Healing: nearer to the teacher, every zero in its place, resumed bit for bit, and one line for wrong input."""

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import shears
from shears.checkpoints.packed.layout import NumberFormat
from shears.errors import InputError
from shears.healing.stage import heal
from shears.quantization.grid import quantize
from shears.records.artifacts import HEALED
from shears.records.folders import CONFIG, partial_folder
from shears.records.trained_form import trained_template
from shears.sparsity.stage import sparsify
from shears.training.distillation import kl_from_logits
from tests.healing.conftest import SETTINGS, prune
from tests.tiny import save_tiny, tiny_tokenizer
from tests.training.small_training import log, stop_after

WAYS: dict[str, dict[str, Any]] = {
    "weights": {},
    "labels": {"cross_entropy": 0.1, "kl": 0.9, "recompute": "none", "micro_batch_size": 2},
    "int4": {"quantize_aware": "int4"},
}


def healed(models: Path, output: Path, **changes: Any) -> Path:
    settings = {**SETTINGS, "teacher": str(models / "dense"), "data": str(models / "text.txt"), **changes}
    return heal(models / "sparse", output, **settings)


def tensors(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return loaded


def distance(models: Path, folder: Path, values: NumberFormat | None = None) -> float:
    """The mean divergence of a folder's model, or of its package of int4 values, from the dense one on the text."""
    ids = torch.tensor(tiny_tokenizer()((models / "text.txt").read_text()).input_ids).view(40, 16)
    student, teacher = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, models / "dense"))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if values and "_proj" in name:
                parameter.copy_(quantize(parameter, values).dense())
        return float(kl_from_logits(*(model(ids).logits[:, :-1].flatten(0, 1) for model in (student, teacher))).mean())


@pytest.mark.parametrize("way", WAYS)
def test_the_model_comes_nearer_to_its_teacher_and_keeps_every_zero(models: Path, tmp_path: Path, way: str) -> None:
    output = healed(models, tmp_path / "healed", **WAYS[way])
    assert distance(models, output) < 0.9 * distance(models, models / "sparse")
    before, after = tensors(models / "sparse"), tensors(output)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight == 0, after[name] == 0)
        assert torch.equal(weight, after[name]) != ("_proj" in name)  # embeddings and norms are frozen
    record = json.loads((output / "heal.json").read_text())
    assert record["num_steps"] == len(log(output)) == 7
    assert record["linears"]["model.layers.0.mlp.up_proj"]["zeros"] == int(
        (before["model.layers.0.mlp.up_proj.weight"] == 0).sum()
    )
    assert not partial_folder(output).exists()
    assert not (output / "checkpoints").exists()


def test_the_log_has_the_loss_and_the_tokens_of_every_step(models: Path, tmp_path: Path) -> None:
    lines = log(healed(models, tmp_path / "healed", **WAYS["labels"]))
    assert all(line["loss"] > 0 for line in lines)
    assert [line["tokens"] for line in lines] == [64] * 7
    rates = [0.0, *((1 + math.cos(math.pi * done / 6)) / 2 for done in range(6))]  # half a cosine after warmup
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2 * rate for rate in rates])


def test_the_first_loss_is_that_of_the_package(models: Path, tmp_path: Path) -> None:
    output = healed(models, tmp_path / "healed", quantize_aware="int4", tokens=16 * 40, batch_size=40, warmup_steps=0)
    [line] = log(output)
    assert line["loss"] == pytest.approx(distance(models, models / "sparse", "int4"), rel=1e-4)
    assert line["loss"] != pytest.approx(distance(models, models / "sparse"), rel=1e-3)
    assert distance(models, output, "int4") < line["loss"]


def test_one_forward_or_several_make_the_same_steps(models: Path, tmp_path: Path) -> None:
    whole, split = (
        healed(models, tmp_path / name, micro_batch_size=size) for name, size in (("whole", None), ("split", 1))
    )
    for one, other in zip(log(whole), log(split), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, WAYS["int4"], {"recompute": "blocks"}],
    ids=["weights", "int4", "blocks"],
)
def test_an_interrupted_healing_resumes_to_the_same_bits(
    models: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = healed(models, tmp_path / "whole", **changes)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(KeyboardInterrupt):
            healed(models, tmp_path / "resumed", **changes)
    resumed = healed(models, tmp_path / "resumed", resume=True, **changes)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert (whole / "training_log.jsonl").read_text() == (resumed / "training_log.jsonl").read_text()
    assert (whole / "heal.json").read_text() == (resumed / "heal.json").read_text()


def test_stopped_while_it_writes_no_step_is_repeated(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = healed(models, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("shears.healing.stage.check_saved", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            healed(models, tmp_path / "resumed")
    monkeypatch.setattr("shears.training.loop._train_from", lambda *_: pytest.fail("trained again"))
    resumed = healed(models, tmp_path / "resumed", resume=True)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_another_setting_is_not_resumed(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(KeyboardInterrupt):
            healed(models, tmp_path / "healed")
    with pytest.raises(InputError, match=r"kl was 1\.0 and is now 2\.0"):
        healed(models, tmp_path / "healed", resume=True, kl=2.0)
    asked = partial_folder(tmp_path / "healed") / CONFIG
    config = json.loads(asked.read_text())
    asked.write_text(json.dumps(config | {"train": "lora"}))
    with pytest.raises(InputError, match="made with train 'lora', an option that this version lacks: only 'weights'"):
        healed(models, tmp_path / "healed", resume=True)
    earlier = {"train": "weights", "rank": 32, "alpha": 64.0, "optimizer": "adamw", "scheduler": "cosine"}
    asked.write_text(json.dumps(config | earlier | {"recompute": True}))
    assert healed(models, tmp_path / "healed", resume=True).is_dir()


def test_files_in_bf16_stay_in_bf16_with_their_zeros(models: Path, tmp_path: Path) -> None:
    for name in ("dense", "sparse"):
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
        for file in models.glob(f"{name}/*token*"):
            shutil.copy(file, tmp_path / name)
    shutil.copy(models / "text.txt", tmp_path)
    before, after = tensors(tmp_path / "sparse"), tensors(healed(tmp_path, tmp_path / "healed"))
    assert all(after[name].dtype == torch.bfloat16 for name in before)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)


def test_rows_are_read_by_their_template(models: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {number}", "output": "x" * 30} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fingerprints = {
        json.loads((healed(models, tmp_path / template, data=str(tmp_path / "rows.jsonl"), template=template, tokens=64)
                    / "heal.json").read_text())["data_fingerprint"]
        for template in ("question", "alpaca", "chat")
    }  # fmt: skip
    assert len(fingerprints) == 3
    other = healed(models, tmp_path / "asked", data=str(tmp_path / "rows.jsonl"), tokens=64)
    chat = json.loads((tmp_path / "chat" / "heal.json").read_text())
    assert json.loads((other / "heal.json").read_text())["data_fingerprint"] == chat["data_fingerprint"]
    assert trained_template(other) is None  # so that evaluate asks it in chats too


def test_a_teacher_may_have_another_depth(models: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "deeper", num_hidden_layers=3)
    assert healed(models, tmp_path / "healed", teacher=str(tmp_path / "deeper"), tokens=64).is_dir()


def test_an_adapter_on_a_dense_model_teaches_as_the_merged_model_does(models: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "bcdefg"}\n' * 16)
    few: dict[str, Any] = {"ranks": "4", "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-2, "device": "cpu",
                           "max_steps": 20}  # fmt: skip
    adapter = shears.train(models / "dense", tmp_path / "adapter", data=tmp_path / "rows.jsonl", **few)
    merged = shears.export_adapter(adapter, tmp_path / "merged", format="merged")
    outputs = [healed(models, tmp_path / f"by-{each.name}", teacher=str(each)) for each in (adapter, merged)]
    taught, reference, plain = map(tensors, (*outputs, healed(models, tmp_path / "by-dense")))
    name = "model.layers.0.mlp.down_proj.weight"
    torch.testing.assert_close(taught[name], reference[name], atol=1e-4, rtol=1e-3)
    assert (taught[name] - plain[name]).abs().max() > 1e-3
    assert json.loads((outputs[0] / "heal.json").read_text())["teacher"] == str(adapter)


@pytest.mark.parametrize("top_k", [0, 8])
def test_a_sparse_teacher_is_warned_of(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, top_k: int
) -> None:
    save_tiny(tmp_path / "other", seed=1)
    prune(tmp_path / "other")
    with caplog.at_level(logging.WARNING, logger="shears"):
        healed(models, tmp_path / "healed", teacher=str(tmp_path / "other"), tokens=64, teacher_top_k=top_k)
    assert "the teacher should be dense" in caplog.text


def test_a_rate_that_does_harm_is_warned_of(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    near = sparsify(models / "dense", tmp_path / "near", method="magnitude", sparsity=0.05, device="cpu")
    settings = {**SETTINGS, "data": str(models / "text.txt")}
    with caplog.at_level(logging.WARNING, logger="shears"):
        heal(near, tmp_path / "healed", **{**settings, "learning_rate": 1e-3})
        assert "did not fall" not in caplog.text
        heal(near, tmp_path / "worse", **{**settings, "learning_rate": 1.0})
    assert re.search(r"the loss did not fall \(.*\): lower learning_rate, such as to 0.3", caplog.text)


@pytest.mark.parametrize(("most", "rate"), [(10**6, 1e-3), (1000, 3e-4)])
def test_the_size_of_the_model_decides_the_rate_where_none_is_set(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, rate: float
) -> None:
    monkeypatch.setattr("shears.config.loop.SMALL", most)
    folder = healed(models, tmp_path / "healed", tokens=64, warmup_steps=0, learning_rate=None)
    first = json.loads((folder / "training_log.jsonl").read_text().splitlines()[0])
    record = json.loads((folder / HEALED).read_text())
    assert (first["learning_rate"], record["learning_rate"], record["config"]["learning_rate"]) == (rate, rate, None)


def test_text_that_is_read_many_times_is_warned_of(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "short.txt").write_text("abcd" * 16)
    with caplog.at_level(logging.WARNING, logger="shears"):
        healed(models, tmp_path / "healed", data=str(tmp_path / "short.txt"))
    assert "64 tokens, which are read 7.0 times for 448" in caplog.text


def test_wrong_input_is_refused_in_one_line_before_anything_is_written(models: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "words", vocab_size=300)
    (tmp_path / "short.txt").write_text("abc")
    cases: dict[str, dict[str, Any]] = {
        r"a teacher must have the vocabulary of .*words has 300 words and .* 257;": {
            "teacher": str(tmp_path / "words")
        },
        r"another model than the one to heal": {"teacher": str(models / "sparse")},
        r"has no record of it; add --teacher": {"teacher": None},
        r"at least a batch of 4 sequences of 16 tokens, .*short\.txt has 3 tokens": {
            "data": str(tmp_path / "short.txt")
        },
        r"kl or cross_entropy must be above 0": {"kl": 0.0},
        r"tokens must be a whole number such as 1000, 50k or 1M, got '1MB'": {"tokens": "1MB"},
        r"micro_batch_size must divide batch_size": {"micro_batch_size": 3},
    }
    for message, changes in cases.items():
        with pytest.raises(InputError, match=message):
            healed(models, tmp_path / "healed", **changes)
        assert not (tmp_path / "healed").exists()
        assert not (tmp_path / "healed.partial").exists()


@pytest.mark.parametrize("data", ["text.txt", "self"])
def test_a_model_without_zeros_is_refused_before_anything_is_computed(
    data: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("prepare", "text_source"):
        monkeypatch.setattr(f"shears.healing.stage.{name}", lambda *_: pytest.fail("work before the check"))
    source = data if data == "self" else str(models / data)
    with pytest.raises(InputError, match="must have zeros, the linears of .*dense have none"):
        heal(models / "dense", tmp_path / "healed", teacher=str(models / "sparse"), data=source, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_warmup_that_is_not_below_the_steps_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"warmup_steps \(50\) must be below the number of steps \(2\); lower"):
        heal("nowhere", tmp_path / "out", data="text.txt", tokens=32, sequence_length=8, batch_size=2, warmup_steps=50)
    assert not list(tmp_path.iterdir())
