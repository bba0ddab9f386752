"""A model with a masked adapter: as if its weights were masked and merged, whatever the ranks, precision and copies."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.prepare import build_space, target_modules
from shears.models.blocks import linears, weight_oi
from shears.models.sparse_adapter import is_sparse, make_plain, make_sparse
from tests.oracles import sparse_peft
from tests.tiny import tiny_model

IDS = torch.arange(24).view(2, 12)
GROUPS = {"llama": ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_fc+mlp.c_proj")}
SCALING = 2.0  # alpha 12 over the largest rank, 6


def elastic_model(name: str = "llama", sparse: bool = True) -> tuple[PeftModel, ElasticAdapter]:
    """A tiny half-sparse model with a random adapter."""
    model, generator = tiny_model(name), torch.Generator().manual_seed(1)
    for linear in linears(model.base_model).values():
        weight = linear.get_parameter("weight")
        weight.data *= torch.rand(weight.shape, generator=generator) < 0.5
    space = build_space(model, GROUPS[name], (6, 4, 2))
    targets = target_modules(model, space)
    peft_model = get_peft_model(
        model,
        LoraConfig(r=6, lora_alpha=12, target_modules=targets, fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM"),
    )
    for parameter_name, parameter in peft_model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    if sparse:
        make_sparse(peft_model)
    return peft_model, make_elastic(peft_model, space)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def gradients(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradients of all trained parameters, and none of any other."""
    model.zero_grad()
    forward().backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all("lora_" in name for name in trained)
    return {name: gradient.clone() for name, gradient in trained.items()}


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_model_computes_what_masked_weights_do(name: str) -> None:
    peft_model, elastic = elastic_model(name)
    elastic.activate(elastic.space.heuristic())
    plain, tensors = tiny_model(name), dict(peft_model.named_parameters())
    plain.load_state_dict(copy.deepcopy(elastic_model(name, sparse=False)[0]).unload().state_dict())
    mask = (torch.arange(6) < 4).float()
    for linear in (linear for names in elastic.space.modules.values() for linear in names):
        a = tensors[f"base_model.model.{linear}.lora_A.default.weight"]
        b = tensors[f"base_model.model.{linear}.lora_B.default.weight"]
        weight = weight_oi(plain.get_submodule(linear))
        weight.data += sparse_peft.product(weight.data, a.data, b.data, mask, SCALING).float()
    torch.testing.assert_close(logits(peft_model), logits(plain))
    assert not torch.equal(logits(peft_model), logits(elastic_model(name, sparse=False)[0]))


def test_unused_ranks_of_a_model_get_no_gradient() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    trained = gradients(peft_model, lambda: peft_model(input_ids=IDS, labels=IDS).loss)
    assert len(trained) == 2 * 5 * 2
    for name, gradient in trained.items():
        ranks = gradient if "lora_A" in name else gradient.T
        assert ranks[:2].abs().sum() > 0
        assert torch.equal(ranks[2:], torch.zeros_like(ranks[2:]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_no_bit(precision: str) -> None:
    peft_model, _ = elastic_model()
    peft_model.enable_input_require_grads()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result: Tensor = peft_model(input_ids=IDS, labels=IDS).loss
        return result

    peft_model.train()
    before = gradients(peft_model, loss)
    peft_model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    after = gradients(peft_model, loss)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_autocast_comes_close_to_full_precision() -> None:
    peft_model, _ = elastic_model()
    full = gradients(peft_model, lambda: peft_model(input_ids=IDS, labels=IDS).loss)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(peft_model, lambda: peft_model(input_ids=IDS, labels=IDS).loss)
    for name, gradient in full.items():
        assert half[name].dtype == torch.float32
        assert (half[name] - gradient).norm() < 0.05 * gradient.norm()


def test_a_copy_is_masked_and_has_its_own_ranks() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    small, twin = logits(peft_model), copy.deepcopy(peft_model)
    elastic.activate(elastic.space.maximal())
    assert is_sparse(twin)
    assert torch.equal(logits(twin), small)
    assert not torch.equal(logits(peft_model), small)


def test_a_plain_model_is_back_bit_for_bit() -> None:
    peft_model, _ = elastic_model(sparse=False)
    before, kinds = logits(peft_model), [type(module) for module in peft_model.modules()]
    assert not is_sparse(peft_model)
    make_sparse(peft_model)
    assert is_sparse(peft_model)
    make_plain(peft_model)
    assert not is_sparse(peft_model)
    assert torch.equal(logits(peft_model), before)
    assert [type(module) for module in peft_model.modules()] == kinds
    make_plain(peft_model)


def test_saved_adapters_are_the_same_with_and_without_the_mask() -> None:
    peft_model, _ = elastic_model()
    plain, _ = elastic_model(sparse=False)
    assert peft_model.state_dict().keys() == plain.state_dict().keys()
