"""Training on a base that bitsandbytes holds in 4 or 8 bits. Oracle: a base whose weights are those, written out."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import shears
from shears.adapt.load import load_super_adapter
from shears.checkpoints.inspection import inspect
from shears.checkpoints.tensor_files import quantized_by
from shears.errors import InputError
from shears.models.blocks import linears, weight_oi
from shears.models.load import Quantized, load_model, quantization_config
from tests.adapt.test_elastic import IDS
from tests.tiny import save_tiny
from tests.training.small_training import SETTINGS, log, pad_batches, weights

FORMS: list[Quantized] = ["nf4", "int8"]


def quantized(folder: Path, form: Quantized) -> Any:
    return load_model(folder, device="cpu", quantization=quantization_config(form, torch.float32))


def written_out(linear: nn.Module) -> Tensor:
    """The weights that a quantized linear stands for, outputs x inputs."""
    weight: Any = linear.weight
    if isinstance(linear, Linear4bit):
        weights: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return weights
    assert isinstance(linear, Linear8bitLt)
    steps: Tensor = weight.data.float() * weight.SCB[:, None] / 127
    return steps


def save_written_out(base: Path, form: Quantized, output: Path) -> Path:
    """Write the base with the quantized weights in place of its own."""
    model, stands_for = load_model(base, device="cpu"), quantized(base, form)
    with torch.no_grad():
        for name, linear in linears(model.get_submodule("model.layers")).items():
            weight_oi(linear).copy_(written_out(stands_for.get_submodule(f"model.layers.{name}")))
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)
    return output


@pytest.mark.parametrize("form", FORMS)
def test_zeros_stay_zeros(base: Path, form: Quantized) -> None:
    model, dense = quantized(base, form), load_model(base, device="cpu")
    places = [name for name in linears(dense) if ".mlp." in name]
    assert len(places) == 6
    for name in places:
        zeros = weight_oi(dense.get_submodule(name)) == 0
        assert 0.4 < zeros.float().mean() < 0.6
        assert not written_out(model.get_submodule(name))[zeros].any()


@pytest.mark.parametrize("form", FORMS)
def test_training_is_that_on_the_weights_written_out(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Quantized
) -> None:
    pad_batches(monkeypatch)
    settings = SETTINGS
    shears.train(base, tmp_path / "quantized", data=data, quantize=form, **settings)
    shears.train(save_written_out(base, form, tmp_path / "out"), tmp_path / "plain", data=data, **settings)
    losses = [[line["loss"] for line in log(tmp_path / name)] for name in ("quantized", "plain")]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=0.0)
    for name, tensor in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "quantized")[name], tensor, rtol=1e-3, atol=1e-4)
    shears.train(base, tmp_path / "unquantized", data=data, **{**settings, "max_steps": 1})
    assert abs(log(tmp_path / "unquantized")[0]["loss"] - losses[0][0]) > 1e-4


def test_a_trial_without_gradients_changes_no_scales(data: str, tmp_path: Path) -> None:
    """As packing needs one. The linears here are large enough for what bitsandbytes does then on some processors."""
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=64, head_dim=16)
    settings = {**SETTINGS, "max_steps": 2}
    shears.train(base, tmp_path / "quantized", data=data, quantize="nf4", **settings)
    shears.train(save_written_out(base, "nf4", tmp_path / "out"), tmp_path / "plain", data=data, **settings)
    for name, tensor in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "quantized")[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_adapter_belongs_to_the_model_in_its_folder(base: Path, data: str, tmp_path: Path) -> None:
    shears.train(base, tmp_path / "adapter", data=data, quantize="nf4", **{**SETTINGS, "max_steps": 2})
    record = json.loads((tmp_path / "adapter" / "search_space.json").read_text())
    assert record["base_fingerprint"] == shears.inspect(base)["fingerprint"]
    merged = shears.export_adapter(tmp_path / "adapter", tmp_path / "merged", format="merged-sparse",
                                   calibration=data, num_samples=2, sequence_length=32)  # fmt: skip
    assert inspect(merged)["sparsity"] == inspect(base)["sparsity"]


def test_a_conv1d_is_quantized_too(data: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "gpt2", "gpt2")
    settings = {**SETTINGS, "groups": ("c_attn", "c_fc")}
    shears.train(base, tmp_path / "adapter", data=data, quantize="nf4", **settings)
    loaded = load_super_adapter(tmp_path / "adapter", device="cpu")
    shears.export_adapter(tmp_path / "adapter", tmp_path / "sub", ranks="maximal")
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "sub"))
    with torch.no_grad():
        whole, plain = loaded.model(input_ids=IDS).logits, load_model(base, device="cpu")(input_ids=IDS).logits
        torch.testing.assert_close(stock(input_ids=IDS).logits, whole)
    assert not torch.allclose(whole, plain, atol=1e-3)


def test_a_base_that_is_quantized_already_is_refused(base: Path, data: str, tmp_path: Path) -> None:
    """It may be trained on as it is; neither quantized again nor merged into."""
    quantized(base, "nf4").save_pretrained(tmp_path / "q")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "q")
    assert (quantized_by(base), quantized_by(tmp_path / "q")) == (None, "bitsandbytes")
    assert inspect(tmp_path / "q")["quantized"] == "bitsandbytes"
    assert "quantized" not in inspect(base)
    settings = {**SETTINGS, "max_steps": 2}
    with pytest.raises(InputError, match="folder of plain weights, .*q is quantized by bitsandbytes"):
        shears.train(tmp_path / "q", tmp_path / "none", data=data, quantize="nf4", **settings)
    adapter = shears.train(tmp_path / "q", tmp_path / "adapter", data=data, **settings)
    with pytest.raises(InputError, match="must have plain weights, .*q is quantized by bitsandbytes"):
        shears.export_adapter(adapter, tmp_path / "merged", format="merged")


@pytest.mark.parametrize("setting", [{"sparse_adapter": True}, {"init": "pissa", "ranks": (4,)}])
def test_settings_that_need_plain_weights_refuse_quantize(base: Path, data: str, tmp_path: Path, setting: Any) -> None:
    with pytest.raises(InputError, match="need plain weights: quantize must be none, got int8"):
        shears.train(base, tmp_path / "adapter", data=data, quantize="int8", **setting)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'shears-llm\[quantize\]'"):
        quantization_config("nf4", torch.float32)
