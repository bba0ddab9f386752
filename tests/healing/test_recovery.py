"""Healing with the recovery in the forward: both come nearer to the teacher and are written; training starts there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import shears
from shears.config import Recipe
from shears.errors import InputError
from shears.healing.linears import RecoveryProduct
from shears.models.recovery import read_recovery
from shears.models.ref import resolve
from shears.training.distillation import kl_from_logits
from tests.healing.conftest import SETTINGS
from tests.tiny import tiny_tokenizer
from tests.training.small_training import log, stop_after

SMALL: dict[str, Any] = {"num_samples": 8, "sequence_length": 16, "device": "cpu"}
ALL: dict[str, Any] = {"tokens": 16 * 40, "batch_size": 40, "warmup_steps": 0}  # one step on the whole text


@pytest.fixture(scope="module")
def sparse(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model with a recovery of rank 4."""
    output = tmp_path_factory.mktemp("recovery") / "sparse"
    return shears.sparsify(
        models / "dense", output, calibration=str(models / "text.txt"), method="magnitude", recover_rank=4, **SMALL
    )


def healed(models: Path, sparse: Path, output: Path, **changes: Any) -> Path:
    settings = {**SETTINGS, "recovery": True, "data": str(models / "text.txt"), **changes}
    return shears.heal(sparse, output, **settings)


def logits(folder: Path, text: Path, *, recovery: bool = True) -> Tensor:
    """What a model says on the text, with stock PEFT's reading of the recovery in its folder."""
    ids = torch.tensor(tiny_tokenizer()(text.read_text()).input_ids).view(40, 16)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, folder / "recovery") if recovery else model
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits[:, :-1].flatten(0, 1))


def distance(models: Path, folder: Path) -> float:
    text = models / "text.txt"
    return float(kl_from_logits(logits(folder, text), logits(models / "dense", text, recovery=False)).mean())


def test_the_product_is_that_of_its_factors_and_so_are_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a, x = (torch.randn(*shape, generator=generator) for shape in ((6, 2), (2, 8), (5, 8)))
    product = RecoveryProduct(b * 0.01, a * 30)
    plain_b, plain_a = (b * 0.01).requires_grad_(), (a * 30).requires_grad_()
    wanted = x @ (plain_b @ plain_a).T
    torch.testing.assert_close(product(x), wanted)
    product(x).square().sum().backward()
    wanted.square().sum().backward()
    for trained, plain, scale in zip((product.b, product.a), (plain_b, plain_a), product.scales, strict=True):
        assert trained.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(trained.grad, plain.grad * scale)
        assert 0.7 < float(trained.detach().square().mean().sqrt()) < 1.5
    assert all(torch.equal(one, other) for one, other in zip(product.factors(), (plain_b, plain_a), strict=True))


def test_the_first_loss_is_that_with_the_recovery_and_it_falls(models: Path, sparse: Path, tmp_path: Path) -> None:
    [line] = log(healed(models, sparse, tmp_path / "one", **ALL))
    assert line["loss"] == pytest.approx(distance(models, sparse), rel=1e-4)
    output = healed(models, sparse, tmp_path / "healed")
    assert distance(models, output) < 0.9 * distance(models, sparse)


def test_both_are_written_and_zeros_stay(models: Path, sparse: Path, tmp_path: Path) -> None:
    output = healed(models, sparse, tmp_path / "healed")
    before, after = (load_file(folder / "model.safetensors") for folder in (sparse, output))
    for name, weight in before.items():
        assert torch.equal(weight == 0, after[name] == 0)
        assert torch.equal(weight, after[name]) != ("_proj" in name)
    old, new = (read_recovery(resolve(folder)) for folder in (sparse, output))
    assert old.keys() == new.keys()
    assert all(old[name].shape == new[name].shape and not torch.equal(old[name], new[name]) for name in old)
    record = json.loads((output / "recovery" / "recovery.json").read_text())
    assert record["base_fingerprint"] == json.loads((output / "heal.json").read_text())["fingerprint"]
    assert "together with the weights that pruning kept" in (output / "recovery" / "README.md").read_text()
    assert json.loads((output / "recovery" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        output
    )


def test_an_interrupted_healing_resumes_to_the_same_bits(
    models: Path, sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = healed(models, sparse, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(KeyboardInterrupt):
            healed(models, sparse, tmp_path / "resumed")
    resumed = healed(models, sparse, tmp_path / "resumed", resume=True)
    for file in ("model.safetensors", "recovery/adapter_model.safetensors", "training_log.jsonl"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()


def test_training_starts_from_the_healed_recovery(models: Path, sparse: Path, tmp_path: Path) -> None:
    output = healed(models, sparse, tmp_path / "healed")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    settings: dict[str, Any] = {"ranks": [4], "max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-12}
    adapter = shears.train(
        output, tmp_path / "adapter", data=str(tmp_path / "rows.jsonl"), init="recovery", device="cpu",
        precision="fp32", groups=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        **settings,
    )  # fmt: skip
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(output), adapter)
    ids = torch.tensor(tiny_tokenizer()((models / "text.txt").read_text()).input_ids).view(40, 16)
    with torch.no_grad():
        got = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(got, logits(output, models / "text.txt"), atol=1e-4, rtol=1e-4)


def test_wrong_input_is_refused_in_one_line(models: Path, sparse: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recovery needs a recovery adapter, .*sparse has none; prune with --recover"):
        healed(models, models / "sparse", tmp_path / "healed", teacher=str(models / "dense"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"heal": {}, "train": {"init": "recovery"}, "sparsify": {"recover_rank": 4}}, "must heal the recovery too"),
        ({"heal": {"recovery": True}}, "must make one, got sparsify.recover_rank 0"),
        ({"train": {"init": "recovery"}}, "must make one, got sparsify.recover_rank 0"),
    ],
)
def test_a_recipe_without_the_recovery_it_needs_is_refused(
    models: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], message: str
) -> None:
    filled = {name: values | ({} if name == "sparsify" else {"data": "rows"}) for name, values in sections.items()}
    recipe = Recipe.model_validate({"model": str(models / "dense"), "output": str(tmp_path / "run"), **filled})
    with pytest.raises(InputError, match=message):
        shears.run(recipe)
