"""Nested training: a step computes the mean of all sub-adapters, and what is saved is a plain adapter at every rank."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.load import load_super_adapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.adapt.train import train
from shears.config import TrainConfig
from shears.errors import InputError
from shears.export.stage import export_adapter
from shears.models.sparse_adapter import make_sparse
from shears.sparsity.stage import sparsify
from tests.adapt.prepared import prepared_on
from tests.adapt.test_elastic import elastic_model, logits
from tests.oracles import nested as oracle
from tests.tiny import save_tiny, tiny_model
from tests.training.small_training import SETTINGS, log, weights

RANKS = (6, 4, 2)
SCALING = 2.0
LINEAR = "model.layers.0.mlp.up_proj"


def nested_model() -> tuple[PeftModel, ElasticAdapter]:
    """The tiny elastic model, with the diagonal."""
    model, elastic = elastic_model()
    elastic.remove()
    return model, make_elastic(model, elastic.space, nested=True)


def test_the_diagonal_is_the_mean_mask_of_uniformly_drawn_ranks() -> None:
    space = SearchSpace({"a": (9, 5, 2), "b": (3,), "c": (9, 2)})
    draws = [space.random(random.Random(seed)) for seed in range(3000)]
    for group, ranks in space.ranks.items():
        counts = Counter(config[group] for config in draws)
        for index, weight in enumerate(space.nested_weights(group)):
            drawn = sum(count for rank, count in counts.items() if index < rank) / len(draws)
            assert weight == sum(1 for rank in ranks if index < rank) / len(ranks)
            assert abs(weight - drawn) < 5 * (0.25 / len(draws)) ** 0.5  # five sigma
    assert space.nested_weights("b") == (1.0, 1.0, 1.0)  # one rank is plain LoRA


def test_a_cut_is_multiplied_until_its_weights_sum_to_those_of_all_components() -> None:
    space = SearchSpace({"a": (9, 5, 2), "b": (3,)}).nested()
    for group, ranks in space.ranks.items():
        weights = space.nested_weights(group)
        for rank in ranks:
            assert space.factor(group, rank) * sum(weights[:rank]) == pytest.approx(sum(weights))
        assert space.factor(group, ranks[0]) == 1.0  # the largest rank is what is trained
    assert SearchSpace(space.ranks).factor("a", 2) == 1.0
    with pytest.raises(InputError, match=r"factor for each of its ranks, 'a' has \[1.0\]"):
        SearchSpace({"a": (2, 1)}, factors={"a": (1.0,)})


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cut_is_the_slice_times_the_diagonal_and_the_factor(name: str) -> None:
    """Before it is folded: dense weights W + scaling * factor * B[:, :r] D A[:r] in a model that knows no LoRA."""
    model, elastic = elastic_model(name)
    elastic.remove()
    elastic = make_elastic(model, elastic.space, nested=True)
    share = torch.tensor([sum(index < rank for rank in RANKS) / 3 for index in range(6)])
    for rank in RANKS:
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, rank)))
        plain = tiny_model(name)
        weigh = share[:rank] * share.sum() / share[:rank].sum()
        tensors = dict(model.named_parameters())
        for linear in (linear for linears in elastic.space.modules.values() for linear in linears):
            a = tensors[f"base_model.model.{linear}.lora_A.default.weight"][:rank]
            b = tensors[f"base_model.model.{linear}.lora_B.default.weight"][:, :rank]
            update = SCALING * (b * weigh) @ a
            weight = plain.get_submodule(linear).get_parameter("weight")
            weight.data += (update.T if name == "gpt2" else update).detach()
        torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_linear_and_its_gradients_are_the_mean_of_the_slices(sparse: bool) -> None:
    model, _ = nested_model()
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


def test_for_a_small_adapter_the_step_is_the_mean_step_of_sampled_ranks() -> None:
    """The gap falls with the square of the adapter's product: where the loss is straight, both are the same."""
    generator = torch.Generator().manual_seed(5)
    x, a, b = (torch.randn(*shape, generator=generator).double() for shape in ((7, 8), (6, 8), (5, 6)))
    gaps = []
    for size in (1e-2, 1e-3):
        sampled = torch.cat([part.flatten() for part in oracle.mean_gradients(x, a, size * b, RANKS, SCALING)])
        outputs = oracle.mean_of_slices(x, a, size * b, RANKS, SCALING, torch.ones(7, 5)).outputs
        step = oracle.mean_of_slices(x, a, size * b, RANKS, SCALING, 2 * (outputs - 1))
        nested = torch.cat([step.a.flatten(), step.b.flatten()])
        gaps.append(float((nested - sampled).norm() / sampled.norm()))
    assert 0 < gaps[1] < 0.11 * gaps[0] < 0.1


def test_cutting_zeroes_the_rest_of_the_diagonal_and_folding_keeps_every_cut() -> None:
    model, elastic = nested_model()
    configs = [elastic.space.maximal(), elastic.space.minimal(), elastic.space.random(random.Random(0))]
    before = []
    for config in configs:
        elastic.activate(config)
        before.append(logits(model))
    elastic.fold()
    elastic.fold()  # once more does nothing
    assert not elastic.nested
    for config, expected in zip(configs, before, strict=True):
        elastic.activate(config)
        torch.testing.assert_close(logits(model), expected)
    assert not torch.allclose(before[0], before[1], atol=1e-3)


def test_unfolding_undoes_folding() -> None:
    model, elastic = nested_model()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    elastic.unfold()
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    elastic.fold()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, kept[name])


def by_hand(elastic: ElasticAdapter) -> dict[str, torch.Tensor]:
    """The factors that must be saved: those in memory, times the root of the share of ranks with the component."""
    share = torch.tensor([sum(index < rank for rank in RANKS) / 3 for index in range(6)]).sqrt()
    found = {}
    for name, parameter in elastic.model.named_parameters():
        if "lora_" in name:
            factor = share[:, None] if "lora_A" in name else share
            found[name.replace(".default", "")] = parameter.detach() * factor
    return found


def test_every_exported_rank_is_a_stock_peft_adapter_with_the_super_adapters_logits(
    base: Path, data: str, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "data": data, "sampling": "nested"}
    output = train(base, tmp_path / "out", **settings)
    assert {tuple(line["ranks"].values()) for line in log(output)} == {(6,) * 6}
    ours = load_super_adapter(output)
    odd = tmp_path / "ranks.json"
    mixed = RankConfig({group: RANKS[index % 3] for index, group in enumerate(ours.elastic.space.ranks)})
    odd.write_text(json.dumps(dict(mixed)))
    groups = json.loads((output / "search_space.json").read_text())["groups"].values()
    assert {tuple(group["factors"]) for group in groups} == {(1.0, 1.2, 2.0)}  # of weights 1, 1, 2/3, 2/3, 1/3, 1/3
    cuts = {"minimal": ours.elastic.space.minimal(), "maximal": ours.elastic.space.maximal(), str(odd): mixed}
    for number, (choice, config) in enumerate(cuts.items()):
        folder = export_adapter(output, tmp_path / f"sub{number}", ranks=choice)
        stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        ours.elastic.activate(config)
        torch.testing.assert_close(logits(stock), logits(ours.model))
        written = json.loads((folder / "adapter_config.json").read_text())
        scalings = {written["lora_alpha"] / written["r"]} | {
            alpha / written["rank_pattern"][name] for name, alpha in written.get("alpha_pattern", {}).items()
        }
        assert scalings == {SCALING}


def test_the_trained_function_is_what_is_saved(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    real = ElasticAdapter.fold

    def fold(self: ElasticAdapter) -> None:
        kept.append((logits(self.model.eval()), by_hand(self)))
        real(self)

    monkeypatch.setattr(ElasticAdapter, "fold", fold)
    output = train(base, tmp_path / "out", data=data, sampling="nested", **SETTINGS)
    [(before, expected)] = kept
    torch.testing.assert_close(logits(load_super_adapter(output).model), before)
    for name, tensor in weights(output).items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_start_from_the_recovery_keeps_its_product_at_every_rank(data: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "dense")
    pruning: dict[str, Any] = {
        "method": "wanda",
        "num_samples": 4,
        "sequence_length": 32,
        "recover_rank": 6,
        "precision": "fp32",
    }
    sparse = sparsify(tmp_path / "dense", tmp_path / "sparse", calibration=data, device="cpu", **pruning)
    plain, nested = (
        prepared_on(sparse, TrainConfig(data=data, sampling=sampling, init="recovery", **SETTINGS))
        for sampling in ("maximal", "nested")
    )
    assert nested.elastic.nested
    for choice in ("maximal", "heuristic", "minimal"):
        for each in (plain, nested):
            each.elastic.activate(getattr(each.elastic.space, choice)())
        torch.testing.assert_close(logits(nested.model.eval()), logits(plain.model.eval()))


def test_nested_is_the_default_where_it_can_be() -> None:
    def sampling(**options: Any) -> str:
        return TrainConfig(data="-", **options).sampling

    assert sampling() == sampling(quantize_aware="none") == "nested"
    assert sampling(quantize_aware="int4") == "uniform"
    assert sampling(quantize_aware="int4", sampling="maximal") == "maximal"


@pytest.mark.parametrize(
    ("options", "base", "decided"),
    [
        ({}, (494_000_000, 0.5, False), (3e-4, 64, "lora")),
        ({}, (494_000_000, 0.5, True), (3e-4, 64, "recovery")),
        ({}, (135_000_000, 0.5, False), (1e-3, 128, "lora")),
        ({"sparse_adapter": True}, (494_000_000, 0.5, True), (3e-4, 128, "lora")),
        ({"sparse_adapter": True}, (135_000_000, 0.75, False), (1e-3, 256, "lora")),
        ({"ranks": (4, 2)}, (494_000_000, 0.5, True), (3e-4, 64, "lora")),  # nested
        ({"ranks": (4, 2), "sampling": "maximal"}, (494_000_000, 0.5, True), (3e-4, 64, "recovery")),
        ({"learning_rate": 0.5, "alpha": 3, "init": "lora"}, (135_000_000, 0.5, True), (0.5, 3, "lora")),
    ],
)
def test_a_base_decides_what_the_user_does_not(
    options: dict[str, Any], base: tuple[int, float, bool], decided: tuple[float, float, str]
) -> None:
    settings = TrainConfig(data="-", **options).for_base(*base)
    assert (settings.learning_rate, settings.alpha, settings.init) == decided


@pytest.mark.parametrize(("examples", "epochs"), [(1, 10), (200, 10), (800, 6), (1812, 3), (5000, 1), (10**6, 1)])
def test_few_rows_are_read_more_often(examples: int, epochs: int) -> None:
    assert TrainConfig(data="-").num_epochs(examples) == epochs
    assert TrainConfig(data="-", epochs=2).num_epochs(examples) == 2
    assert TrainConfig(data="-", batch_size=1).num_steps(examples) == epochs * examples
