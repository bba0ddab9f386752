"""Masking ranks by a hook is the same as slicing the matrices, on PEFT's own layers; draws depend on seed and step."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from shears.adapt.elastic import ElasticAdapter, NLSCallback, ranks_of_step
from shears.adapt.groups import add_lora, build_space
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
    return peft_model, ElasticAdapter(peft_model, space)


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
            a = tensors[f"base_model.model.{linear}.lora_A.default.weight"][: config[group]]
            b = tensors[f"base_model.model.{linear}.lora_B.default.weight"][:, : config[group]]
            update = scaling * b @ a
            weight = plain.get_submodule(linear).get_parameter("weight")
            weight.data += update.T if name == "gpt2" else update  # Conv1D holds its weight transposed
    return logits(plain)


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_masked_ranks_equal_sliced_matrices(name: str) -> None:
    peft_model, elastic = elastic_model(name)
    mixed = RankConfig({group: (6, 4, 2)[index % 3] for index, group in enumerate(elastic.space.ranks)})
    for config in (elastic.space.minimal(), mixed, elastic.space.maximal()):
        elastic.activate(config)
        torch.testing.assert_close(logits(peft_model), sliced_by_hand(name, config, scaling=12 / 6))


def test_ranks_beyond_the_active_one_have_exactly_zero_gradient() -> None:
    peft_model, elastic = elastic_model()
    elastic.activate(elastic.space.minimal())
    peft_model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in peft_model.named_parameters():
        if "lora_" not in name:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        ranks = parameter.grad if "lora_A" in name else parameter.grad.T
        assert ranks[:2].any()
        assert not ranks[2:].any()


def test_ranks_are_switched_in_place_and_removed_without_a_trace() -> None:
    peft_model, elastic = elastic_model()
    largest = logits(peft_model)
    elastic.activate(elastic.space.minimal())
    twin = copy.deepcopy(peft_model)
    small = logits(peft_model)
    with elastic.at(elastic.space.maximal()):
        assert torch.equal(logits(peft_model), largest)
    assert torch.equal(logits(peft_model), small)
    elastic.remove()
    elastic.remove()  # once more does nothing
    assert torch.equal(logits(peft_model), largest)
    assert torch.equal(logits(twin), small)
    assert not torch.equal(small, largest)
    assert not any("rank_mask" in name for name, _ in peft_model.named_buffers())
    assert not any("rank_mask" in name for name in twin.state_dict())
    ElasticAdapter(peft_model, elastic.space)  # and it can be made elastic again


def test_layers_that_cannot_be_elastic_are_refused() -> None:
    peft_model, elastic = elastic_model()
    with pytest.raises(InputError, match="only once"):
        ElasticAdapter(peft_model, elastic.space)
    with pytest.raises(InputError, match="must be one of"):
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, 3)))
    elastic.remove()
    too_large = SearchSpace(dict.fromkeys(elastic.space.ranks, (8, 2)), elastic.space.modules)
    with pytest.raises(InputError, match="as plain LoRA of rank 8"):
        ElasticAdapter(peft_model, too_large)
    with pytest.raises(InputError, match="must have the adapter"):
        ElasticAdapter(peft_model, SearchSpace({"a": (2,)}, {"a": ("model.layers.0.self_attn.o_proj",)}))
    variant = get_peft_model(tiny_model(), LoraConfig(r=6, target_modules=elastic.space.linears, use_dora=True))
    with pytest.raises(InputError, match="plain LoRA"):
        ElasticAdapter(variant, elastic.space)


def test_every_step_has_its_own_ranks_in_a_stock_trainer(tmp_path: Path) -> None:
    model, elastic = elastic_model()
    seen: list[RankConfig | None] = []
    model.register_forward_pre_hook(lambda *_: seen.append(elastic.active))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[NLSCallback(elastic, seed=3)]).train()
    assert seen == [ranks_of_step("uniform", elastic.space, 3, step) for step in range(3)]
    assert elastic.active == elastic.space.maximal()
