"""Recomputing between matrix products: the same bits, less memory."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from shears.adapt.train import train
from shears.training.memory import keeps, recompute_between_products
from tests.tiny import CONFIGS, tiny_model
from tests.training.small_training import SETTINGS, assert_same

IDS = torch.arange(20).view(2, 10)
MORE = ("mixtral", "deepseek_v3", "qwen3_next", "zamba2", "lfm2", "granitemoehybrid", "rwkv")
aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings(  # PEFT on models whose linears are Conv1D, or stacks of experts
    "ignore:fan_in_fan_out is set to False:UserWarning", "ignore:The following .*_pattern keys:RuntimeWarning"
)


def with_adapter(name: str) -> PeftModel:
    """A tiny model with a random adapter on every linear."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny_model(name), lora).train()


def gradients(model: PeftModel) -> list[Tensor]:
    """Of the adapter, for a fixed batch, under bf16 autocast."""
    torch.manual_seed(1)  # some drop out
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS, use_cache=False).logits.float().square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_gradients_are_the_same_bits_on(name: str) -> None:
    plain, recomputing = with_adapter(name), with_adapter(name)
    assert recompute_between_products(recomputing, 4)
    expected, actual = gradients(plain), gradients(recomputing)
    assert expected
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))


def test_a_model_that_modifies_its_products_is_trained_without_recomputing() -> None:
    """gpt_oss adds its experts' biases in place."""
    plain, tried = with_adapter("gpt_oss"), with_adapter("gpt_oss")
    assert not recompute_between_products(tried, 4)
    assert all(torch.equal(one, other) for one, other in zip(gradients(plain), gradients(tried), strict=True))


def test_a_trial_changes_neither_gradients_nor_generators() -> None:
    model = with_adapter("llama").eval()
    state = torch.get_rng_state()
    recompute_between_products(model, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def kept_bytes(model: PeftModel) -> int:
    """Bytes of distinct storages that autograd holds between forward and backward, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=torch.arange(64)[None], use_cache=False).logits.sum()
    del output
    return sum(held.values())


def test_autograd_itself_keeps_nothing_inside_a_block() -> None:
    plain, recomputing = with_adapter("llama"), with_adapter("llama")
    recompute_between_products(recomputing, 4)
    assert kept_bytes(recomputing) < 0.3 * kept_bytes(plain)


def test_wide_products_are_kept_and_narrow_ones_recomputed() -> None:
    wide, narrow = torch.ones(5, 64), torch.ones(5, 4)
    assert keeps(aten.mm.default, (wide, torch.ones(64, 7)), narrow=4)
    assert not keeps(aten.mm.default, (narrow, torch.ones(4, 7)), narrow=4)
    assert keeps(aten.addmm.default, (torch.ones(7), wide, torch.ones(64, 7)), narrow=4)
    assert not keeps(aten.addmm.default, (torch.ones(7), narrow, torch.ones(4, 7)), narrow=4)
    assert keeps(aten._scaled_dot_product_flash_attention_for_cpu.default, (narrow[None, None],) * 3, narrow=4)
    assert not keeps(aten.mul.Tensor, (wide, wide), narrow=4)


def test_training_is_the_same_bits(base: Path, data: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "data": data, "sampling": "uniform", "dropout": 0.1}
    plain = train(base, tmp_path / "plain", recompute="none", **settings)
    assert_same(plain, train(base, tmp_path / "recomputed", **settings))
