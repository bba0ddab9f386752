"""Any frozen base: half precision, Conv1D, models that cannot be packed, quantized linears; only adapters change."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.prepare import build_space
from shears.adapt.train import training_of
from shears.config import TrainConfig
from shears.training.loop import fit
from tests.adapt.prepared import prepared_on
from tests.adapt.test_elastic import IDS, random_configs
from tests.tiny import save_tiny, tiny_model
from tests.training.small_training import SETTINGS, log

GPT2 = ("c_attn", "mlp.c_fc+mlp.c_proj")
OPT = ("q_proj+k_proj+v_proj", "fc1", "fc2")
BASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "fp32", {"sampling": "uniform"}),
    ("llama", "bf16", {"sampling": "uniform"}),
    ("llama", "bf16", {"precision": "bf16", "sampling": "uniform"}),
    ("llama", "fp16", {"sampling": "uniform"}),
    ("llama", "fp16", {"precision": "bf16"}),
    ("llama", "bf16", {"sparse_adapter": True}),
    ("gpt2", "fp32", {"groups": GPT2, "sampling": "uniform"}),
    ("gpt2", "bf16", {"groups": GPT2, "sampling": "uniform", "precision": "bf16"}),
    ("gpt2", "fp16", {"groups": GPT2, "precision": "bf16"}),
    ("opt", "fp32", {"groups": OPT, "sampling": "uniform"}),
    ("opt", "fp16", {"groups": OPT, "precision": "bf16", "sparse_adapter": True}),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize(("name", "kind", "changes"), BASES)
def test_only_the_adapter_changes(name: str, kind: str, changes: dict[str, Any], data: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[kind]).save_pretrained(base)
    settings = TrainConfig(data=data, **{**SETTINGS, "max_steps": 15, **changes})
    prepared = prepared_on(base, settings)
    before = {key: tensor.clone() for key, tensor in prepared.model.state_dict().items() if "lora_" not in key}
    formats = {tensor.dtype for key, tensor in before.items() if tensor.is_floating_point() and not _is_norm(key)}
    assert formats == {torch.float32 if settings.precision == "fp32" else DTYPES[kind]}
    (tmp_path / "work").mkdir()
    fit(training_of(prepared, settings), tmp_path / "work", settings)
    after = prepared.model.state_dict()
    as_computed = {key: tensor.to(after[key].dtype) for key, tensor in before.items()}  # linears may be held in bf16
    assert all(torch.equal(after[key], tensor) for key, tensor in as_computed.items())
    assert {tensor.dtype for key, tensor in after.items() if "lora_" in key} == {torch.float32}
    losses = [line["loss"] for line in log(tmp_path / "work")]
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])  # the head of a random model stays random


def _is_norm(name: str) -> bool:
    return "norm" in name or ".ln_" in name


def test_a_model_that_cannot_be_packed_is_padded_with_a_message(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_tiny(tmp_path / "base", "opt")
    settings = TrainConfig(data=data, **{**SETTINGS, "groups": OPT, "max_steps": 1})
    (tmp_path / "work").mkdir()
    with caplog.at_level(logging.INFO, "shears"):
        fit(training_of(prepared_on(base, settings), settings), tmp_path / "work", settings)
    assert "does not keep packed examples apart" in caplog.text


class Int8(nn.Linear):
    """A linear whose weights are whole numbers times a scale for each output, as quantizers keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.get_buffer("scale")).T


class LoraInt8(nn.Module, LoraLayer):  # type: ignore[misc]
    """A LoRA layer on it with a forward of its own, as PEFT has them for each quantizer (lora/bnb.py)."""

    def __init__(self, base: nn.Module, adapter_name: str, config: LoraConfig, r: int, **other: Any) -> None:
        super().__init__()
        LoraLayer.__init__(self, base)
        layer: Any = self  # to mypy, nn.Module's attributes could be anything
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, r, lora_alpha=config.lora_alpha, config=config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        result: Tensor = layer.base_layer(x)
        for name in layer.active_adapters:
            result = result + layer.lora_B[name](layer.lora_A[name](x)) * layer.scaling[name]
        return result


@pytest.fixture
def quantized() -> tuple[Any, ElasticAdapter]:
    """A tiny model with int8 linears, an adapter on them, and its switch; and the space."""
    model: Any = tiny_model("llama")
    space = build_space(model, ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), (6, 4, 2))
    for name in (name for names in space.modules.values() for name in names):
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Int8(model.get_submodule(name)))
    config = LoraConfig(r=6, lora_alpha=12, target_modules=[n for names in space.modules.values() for n in names])
    config._register_custom_module({Int8: LoraInt8})
    peft_model = get_peft_model(model, config)
    return peft_model, make_elastic(peft_model, space)


def test_quantized_linears_are_elastic_and_train(quantized: tuple[Any, ElasticAdapter]) -> None:
    model, elastic = quantized
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for config in random_configs(elastic.space, 15):
        elastic.activate(config)
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert sum(p.dtype == torch.int8 for p in frozen.values()) == 10


def test_masked_ranks_of_quantized_linears_get_no_gradient(quantized: tuple[Any, ElasticAdapter]) -> None:
    model, elastic = quantized
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    whole = model(input_ids=IDS).logits
    elastic.activate(elastic.space.minimal())
    assert not torch.equal(model(input_ids=IDS).logits, whole)
    model(input_ids=IDS).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            assert parameter.grad[:2].any()
            assert not parameter.grad[2:].any()


def test_rows_of_packed_examples_stay_within_the_models_positions(tmp_path: Path) -> None:
    """GPT-Neo has a causal mask of as many tokens as it has positions, and fails beyond."""
    base = save_tiny(tmp_path / "base", "gpt_neo")
    rows = [{"prompt": "a" * length, "completion": " b"} for length in (240, 100, 90, 60)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"groups": ("q_proj", "v_proj"), "max_steps": 2, "max_length": 256, "batch_size": 4}
    settings = TrainConfig(data=str(tmp_path / "long.jsonl"), **{**SETTINGS, **changes})
    (tmp_path / "work").mkdir()
    fit(training_of(prepared_on(base, settings), settings), tmp_path / "work", settings)
    assert [line["tokens"] for line in log(tmp_path / "work")] == [sum((240, 100, 90, 60)) + 4 * 3] * 2
