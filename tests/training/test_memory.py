"""Frozen linears in the number format that they compute in: the same bits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from shears.models.sparse_adapter import make_sparse
from shears.training.memory import hold_as_computed
from tests.tiny import tiny_model

IDS = torch.arange(20).view(2, 10)


def adapted(name: str = "llama", targets: str | list[str] = "all-linear") -> nn.Module:
    """A tiny model with a random adapter."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model: nn.Module = get_peft_model(tiny_model(name), lora).train()
    return model


def gradients(model: nn.Module) -> list[Tensor]:
    """Of the adapter, for a fixed batch, under bf16 autocast."""
    torch.manual_seed(1)  # some drop out
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS, use_cache=False).logits.float().square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False:UserWarning", "ignore:The following .*_pattern keys:RuntimeWarning"
)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "opt", "gemma2", "mixtral", "qwen3_next", "lfm2"])
def test_gradients_are_the_same_bits_on(name: str) -> None:
    plain, held = adapted(name), adapted(name)
    assert hold_as_computed(held, "bf16") > 0
    assert all(torch.equal(one, other) for one, other in zip(gradients(plain), gradients(held), strict=True))


def test_embeddings_norms_and_tied_heads_keep_their_numbers() -> None:
    model = adapted()
    hold_as_computed(model, "bf16")
    base = model.get_base_model()  # type: ignore[operator]
    kept = {name for name, each in base.named_parameters() if each.dtype == torch.float32 and not each.requires_grad}
    assert base.model.layers[0].self_attn.o_proj.base_layer.weight.dtype == torch.bfloat16
    tied = base.lm_head.weight is base.model.embed_tokens.weight
    assert {name for name in kept if "norm" not in name} == {"model.embed_tokens.weight"}
    assert (base.lm_head.weight.dtype == torch.float32) == tied


def test_a_trained_weight_and_a_sparse_adapters_base_stay() -> None:
    model = adapted(targets=["q_proj"])
    base = model.get_base_model()  # type: ignore[operator]
    base.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    make_sparse(model)
    hold_as_computed(model, "bf16")
    assert base.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert base.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.float32
    assert base.model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16


def test_a_model_that_adds_to_its_weights_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    layer = model.get_base_model().model.layers[0].mlp.down_proj.base_layer  # type: ignore[operator]
    monkeypatch.setattr(layer, "forward", lambda x: nn.functional.linear(x, layer.weight * 1.001))
    before = {name: each.clone() for name, each in model.named_parameters()}
    assert hold_as_computed(model, "bf16") == 0
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    assert all(each.dtype == before[name].dtype for name, each in model.named_parameters())


def test_fp32_converts_nothing() -> None:
    assert hold_as_computed(adapted(), "fp32") == 0
