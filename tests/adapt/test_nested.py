"""Nested training: a step computes the mean of all sub-adapters, and what is saved is a plain adapter at every rank."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shears import export_adapter
from shears.adapt.elastic import ElasticAdapter
from shears.adapt.groups import add_lora, build_space
from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from shears.config import TrainConfig
from shears.errors import InputError
from shears.models.sparse_adapter import make_sparse
from tests.adapt.test_elastic import GROUPS, elastic_model, logits
from tests.oracles import nested as oracle
from tests.tiny import tiny_model
from tests.training.small_training import SETTINGS, log

RANKS = (6, 4, 2)
SCALING = 2.0
LINEAR = "model.layers.0.mlp.up_proj"


def nested_model(name: str = "llama") -> ElasticAdapter:
    """A tiny model whose nested adapter, zero at the start, got the weights of `elastic_model`."""
    model = tiny_model(name)
    space = build_space(model, GROUPS[name], RANKS)
    elastic = ElasticAdapter(add_lora(model, space, TrainConfig(data="-", ranks=RANKS, alpha=12)), space, nested=True)
    elastic.model.load_state_dict(elastic_model(name)[0].state_dict())
    return elastic


def test_factors_make_up_for_what_is_cut() -> None:
    space = SearchSpace({"a": (9, 5, 2), "b": (3,)}).nested()
    for group, ranks in space.ranks.items():
        weights = [sum(index < rank for rank in ranks) / len(ranks) for index in range(ranks[0])]
        for rank in ranks:
            assert space.factor(group, rank) * sum(weights[:rank]) == pytest.approx(sum(weights))
        assert space.factor(group, ranks[0]) == 1.0  # the largest rank is what is trained
    assert SearchSpace(space.ranks).factor("a", 2) == 1.0
    with pytest.raises(InputError, match="one factor for each rank, 'a' has 1 factors"):
        SearchSpace({"a": (2, 1)}, factors={"a": (1.0,)})


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cut_is_the_slice_times_the_diagonal_and_the_factor(name: str) -> None:
    """Dense weights W + scaling * factor * B[:, :r] D A[:r] in a model that knows no LoRA; so is what is saved."""
    elastic = nested_model(name)
    model = elastic.model
    share = torch.tensor([sum(index < rank for rank in RANKS) / 3 for index in range(6)])
    saved = elastic.tensors()
    for rank in RANKS:
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, rank)))
        plain = tiny_model(name)
        weigh = share[:rank] * share.sum() / share[:rank].sum()
        tensors = dict(model.named_parameters())
        for linear in elastic.space.linears:
            a = tensors[f"base_model.model.{linear}.lora_A.default.weight"][:rank]
            b = tensors[f"base_model.model.{linear}.lora_B.default.weight"][:, :rank]
            update = SCALING * (b * weigh) @ a
            weight = plain.get_submodule(linear).get_parameter("weight")
            weight.data += (update.T if name == "gpt2" else update).detach()
            kept_a, kept_b = (saved[f"base_model.model.{linear}.lora_{side}.weight"] for side in "AB")
            torch.testing.assert_close(
                kept_b[:, :rank] @ kept_a[:rank] * SCALING * share.sum() / share[:rank].sum(), update.detach()
            )
        torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_linear_and_its_gradients_are_the_mean_of_the_slices(sparse: bool) -> None:
    model = nested_model().model
    if sparse:
        make_sparse(model)  # the weight has no zeros, so the product stays
    layer = model.get_base_model().get_submodule(LINEAR)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    cotangent = torch.randn(5, 48, generator=torch.Generator().manual_seed(4))
    outputs = layer(x) - layer.base_layer(x)
    gradients = torch.autograd.grad((outputs * cotangent).sum(), (a, b))
    expected = oracle.mean_of_slices(x, a, b, RANKS, SCALING, cotangent)
    for found, wanted in zip((outputs, *gradients), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_start_of_its_own_keeps_its_product_at_every_rank() -> None:
    """Such as the recovery's: an adapter that is not zero when it becomes nested is divided by the diagonal."""
    model, plain = elastic_model()
    other, handle = elastic_model()
    handle.remove()
    nested = ElasticAdapter(other, handle.space, nested=True)
    for choice in ("maximal", "heuristic", "minimal"):
        for each in (plain, nested):
            each.activate(getattr(each.space, choice)())
        torch.testing.assert_close(logits(other), logits(model))
    for name, tensor in nested.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[name])


def test_every_exported_rank_is_a_stock_peft_adapter_with_the_super_adapters_logits(
    base: Path, data: str, tmp_path: Path
) -> None:
    output = train(base, tmp_path / "out", data=data, sampling="nested", **SETTINGS)
    assert {tuple(line["ranks"].values()) for line in log(output)} == {(6,) * 6}
    ours = load_super_adapter(output)
    odd = tmp_path / "ranks.json"
    mixed = RankConfig({group: RANKS[index % 3] for index, group in enumerate(ours.elastic.space.ranks)})
    odd.write_text(json.dumps(dict(mixed)))
    groups = json.loads((output / "search_space.json").read_text())["groups"].values()
    assert {tuple(group["factors"]) for group in groups} == {(1.0, 1.2, 2.0)}  # of weights 1, 1, 2/3, 2/3, 1/3, 1/3
    for number, (choice, config) in enumerate({"minimal": ours.elastic.space.minimal(), str(odd): mixed}.items()):
        folder = export_adapter(output, tmp_path / f"sub{number}", sub_adapter=choice)
        stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        ours.elastic.activate(config)
        torch.testing.assert_close(logits(stock), logits(ours.model))
        written = json.loads((folder / "adapter_config.json").read_text())
        scalings = {written["lora_alpha"] / written["r"]} | {
            alpha / written["rank_pattern"][name] for name, alpha in written.get("alpha_pattern", {}).items()
        }
        assert scalings == {SCALING}


@pytest.mark.parametrize(
    ("options", "base", "decided"),
    [
        ({}, (494_000_000, 0.5, False), (3e-4, 64, "lora")),
        ({}, (494_000_000, 0.5, True), (3e-4, 64, "recovery")),
        ({"sparse_adapter": True}, (135_000_000, 0.75, True), (1e-3, 256, "lora")),
        ({"ranks": (4, 2)}, (494_000_000, 0.5, True), (3e-4, 64, "lora")),  # nested
        ({"ranks": (4, 2), "sampling": "uniform"}, (494_000_000, 0.5, True), (3e-4, 64, "recovery")),
        ({"learning_rate": 0.5, "alpha": 3, "init": "lora"}, (135_000_000, 0.5, True), (0.5, 3, "lora")),
    ],
)
def test_a_base_decides_what_the_user_does_not(
    options: dict[str, Any], base: tuple[int, float, bool], decided: tuple[float, float, str]
) -> None:
    settings = TrainConfig(data="-", **options).for_base(*base)
    assert (settings.learning_rate, settings.alpha, settings.init) == decided
