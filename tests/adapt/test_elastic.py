"""Masking ranks by a hook is the same as slicing the matrices, on PEFT's own layers."""

import copy
import random

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.prepare import add_lora, build_space
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import TrainConfig
from shears.errors import InputError
from tests.tiny import tiny_model

IDS = torch.arange(12).view(2, 6)
GROUPS = {
    "llama": ("q_proj+k_proj+v_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_fc+mlp.c_proj"),
    "gpt_neox": ("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
}


def elastic_model(name: str = "llama", ranks: tuple[int, ...] = (6, 4, 2)) -> tuple[PeftModel, ElasticAdapter]:
    """A tiny model with a random, non-zero adapter."""
    model = tiny_model(name)
    space = build_space(model, GROUPS[name], ranks)
    peft_model = add_lora(model, space, TrainConfig(data="-", ranks=ranks, alpha=12))
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in peft_model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return peft_model, make_elastic(peft_model, space)


def logits(model: torch.nn.Module) -> Tensor:
    """Logits of a fixed batch."""
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def sliced_by_hand(name: str, config: RankConfig, scaling: float) -> Tensor:
    """Oracle: the dense weight W + scaling * B[:, :r] A[:r], written into a model that knows nothing of LoRA."""
    peft_model, elastic = elastic_model(name)
    plain = tiny_model(name)
    tensors = dict(peft_model.named_parameters())
    for group, linears in elastic.space.modules.items():
        for linear in linears:
            rank = config[group]
            a = tensors[f"base_model.model.{linear}.lora_A.default.weight"][:rank]
            b = tensors[f"base_model.model.{linear}.lora_B.default.weight"][:, :rank]
            update = scaling * b @ a
            weight = plain.get_submodule(linear).get_parameter("weight")
            weight.data += update.T if name == "gpt2" else update  # Conv1D holds its weight transposed
    return logits(plain)


@pytest.mark.parametrize("name", sorted(GROUPS))
@pytest.mark.parametrize("choice", ["maximal", "heuristic", "minimal"])
def test_masked_ranks_equal_sliced_matrices(name: str, choice: str) -> None:
    peft_model, elastic = elastic_model(name)
    config = getattr(elastic.space, choice)()
    elastic.activate(config)
    torch.testing.assert_close(logits(peft_model), sliced_by_hand(name, config, scaling=12 / 6))


def test_ranks_may_differ_between_groups() -> None:
    peft_model, elastic = elastic_model()
    groups = sorted(elastic.space.ranks)
    config = RankConfig({group: (6, 4, 2)[index % 3] for index, group in enumerate(groups)})
    elastic.activate(config)
    torch.testing.assert_close(logits(peft_model), sliced_by_hand("llama", config, scaling=2.0))


def test_unused_ranks_get_no_gradient() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    peft_model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in peft_model.named_parameters():
        if "lora_" not in name:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        used, unused = (
            (parameter.grad[:2], parameter.grad[2:])
            if "lora_A" in name
            else (parameter.grad[:, :2], parameter.grad[:, 2:])
        )
        assert used.abs().sum() > 0
        assert torch.equal(unused, torch.zeros_like(unused))


def test_switching_back_and_forth_changes_nothing() -> None:
    peft_model, elastic = elastic_model()
    before = logits(peft_model)
    elastic.activate(elastic.space.minimal())
    assert not torch.equal(logits(peft_model), before)
    elastic.activate(elastic.space.maximal())
    assert torch.equal(logits(peft_model), before)


def test_removing_leaves_a_plain_peft_model() -> None:
    peft_model, elastic = elastic_model()
    before = logits(peft_model)
    elastic.activate(elastic.space.minimal())
    elastic.remove()
    elastic.remove()  # once more does nothing
    assert torch.equal(logits(peft_model), before)
    assert not any("rank_mask" in name for name, _ in peft_model.named_buffers())
    make_elastic(peft_model, elastic.space)  # and it can be made elastic again


def test_a_copy_keeps_its_own_ranks() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    twin = copy.deepcopy(peft_model)
    small = logits(peft_model)
    elastic.activate(elastic.space.maximal())
    assert torch.equal(logits(twin), small)
    assert not torch.equal(logits(peft_model), small)


def test_saved_state_holds_no_mask() -> None:
    peft_model, _ = elastic_model()
    assert not any("rank_mask" in name for name in peft_model.state_dict())


def test_parameters_are_counted_exactly() -> None:
    _, elastic = elastic_model()
    # a layer: q 32->32, k and v 32->16, up 32->48, down 48->32; two layers
    per_rank = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 48) + (48 + 32))
    assert elastic.num_parameters(elastic.space.heuristic()) == 4 * per_rank


def test_layers_that_cannot_be_elastic_are_refused() -> None:
    peft_model, elastic = elastic_model()
    with pytest.raises(InputError, match="only once"):
        make_elastic(peft_model, elastic.space)
    with pytest.raises(InputError, match="must be one of"):
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, 3)))
    elastic.remove()
    too_large = SearchSpace(dict.fromkeys(elastic.space.ranks, (8, 2)), elastic.space.modules)
    with pytest.raises(InputError, match=r"largest rank of its group \(8\), got 6"):
        make_elastic(peft_model, too_large)
    nowhere = SearchSpace({"a": (2,)}, {"a": ("model.layers.0.self_attn.o_proj",)})
    with pytest.raises(InputError, match="must carry the adapter"):
        make_elastic(peft_model, nowhere)


def random_configs(space: SearchSpace, count: int) -> list[RankConfig]:
    """Different configurations."""
    return [space.random(random.Random(seed)) for seed in range(count)]


def test_ranks_beyond_the_active_one_have_exactly_zero_gradient() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    peft_model(input_ids=IDS).logits.square().sum().backward()
    for name, parameter in peft_model.named_parameters():
        if "lora_A" in name:
            assert parameter.grad is not None
            assert parameter.grad[:2].any()
            assert not parameter.grad[2:].any()
        if "lora_B" in name:
            assert parameter.grad is not None
            assert not parameter.grad[:, 2:].any()
