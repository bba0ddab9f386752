"""LoRA of linears that share an input, in one operator: PEFT's results but for rounding, under any mask of ranks."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from shears.adapt.elastic import make_elastic
from shears.adapt.space import SearchSpace
from shears.training.fused_lora import FusedLora, fuse_lora, unfuse_lora
from shears.training.memory import hold_as_computed, kept_heap, recompute_between_products
from tests.tiny import tiny_model

IDS = torch.arange(20).view(2, 10)
RANKS = (4, 2)


def adapted(name: str = "qwen2", dropout: float = 0.0, recompute: bool = False) -> PeftModel:
    """A tiny model with a random adapter, its linears held in bf16."""
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_model(name), lora).train()
    assert not recompute or recompute_between_products(model, 4)
    hold_as_computed(model, "bf16")
    return model


def gradients(model: PeftModel) -> dict[str, Tensor]:
    """Of the adapter, for a fixed batch, under bf16 autocast."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS, use_cache=False).logits.float().square().mean().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def space_of(model: PeftModel) -> SearchSpace:
    """One group a linear."""
    names = [name for name, each in model.get_base_model().named_modules() if hasattr(each, "lora_A")]
    return SearchSpace(dict.fromkeys(names, RANKS), {name: (name,) for name in names})


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """But for the rounding of bf16, which keeps 8 bits: over all matrices, since small ones are mostly rounding."""
    assert one.keys() == other.keys()
    assert one
    first, second = (torch.cat([each[name].flatten() for name in one]) for each in (one, other))
    assert (first - second).norm() <= 4e-2 * second.norm()


def test_queries_keys_and_values_are_fused_and_up_and_down_stand_alone() -> None:
    model = adapted()
    assert fuse_lora(model, "bf16") == 10
    block = model.get_base_model().model.layers[0]
    assert block.self_attn.q_proj.partners == (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
    assert block.mlp.up_proj.partners == (block.mlp.up_proj,)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_gradients_are_pefts_but_for_rounding(name: str, recompute: bool) -> None:
    plain = adapted(name)
    fused = adapted(name, recompute=recompute)
    assert fuse_lora(fused, "bf16")
    assert_near(gradients(fused), gradients(plain))


def test_a_checkpoint_recomputes_the_same_bits() -> None:
    kept, recomputed = adapted(), adapted(recompute=True)
    for model in (kept, recomputed):
        fuse_lora(model, "bf16")
    one, other = gradients(kept), gradients(recomputed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ranks_beyond_the_active_ones_get_no_gradient() -> None:
    plain = adapted()
    fused = copy.deepcopy(plain)
    fuse_lora(fused, "bf16")
    for model in (plain, fused):
        elastic = make_elastic(model, space_of(model))
        elastic.activate(elastic.space.minimal())
    found = gradients(fused)
    assert_near(found, gradients(plain))
    assert all(not each[2:].any() for name, each in found.items() if "lora_A" in name)
    assert all(not each[:, 2:].any() for name, each in found.items() if "lora_B" in name)


def test_in_fp32_pefts_own_bits_are_computed() -> None:
    plain, fused = tiny_lora(), tiny_lora()
    assert fuse_lora(fused, "fp32") == 0
    fuse_lora(fused, "bf16")
    assert any(isinstance(layer, FusedLora) for layer in fused.modules())
    assert torch.equal(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    with fused.disable_adapter(), plain.disable_adapter():
        assert torch.equal(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def tiny_lora() -> PeftModel:
    """In fp32."""
    torch.manual_seed(0)
    return get_peft_model(tiny_model("qwen2"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))


def test_files_keep_their_names_and_the_inverse_gives_pefts_layers() -> None:
    plain = adapted()
    fused = copy.deepcopy(plain)
    fuse_lora(fused, "bf16")
    saved = get_peft_model_state_dict(fused)
    assert all(torch.equal(each, saved[name]) for name, each in get_peft_model_state_dict(plain).items())
    assert saved.keys() == get_peft_model_state_dict(plain).keys()
    unfuse_lora(fused)
    one, other = gradients(fused), gradients(plain)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_is_not_fused() -> None:
    assert fuse_lora(adapted(dropout=0.1), "bf16") == 0


def test_a_kept_heap_changes_no_result() -> None:
    expected = torch.ones(2**22).cumsum(0)
    with kept_heap():
        assert torch.equal(torch.ones(2**22).cumsum(0), expected)
    assert torch.equal(torch.ones(2**22).cumsum(0), expected)
