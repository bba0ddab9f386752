"""PoLAR and LoKr: elastic as LoRA is, and what is activated, exported and loaded by stock PEFT has the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from shears.adapt import prepare as prepare_module
from shears.adapt.elastic import ElasticAdapter, factors_of, lora_layers, make_elastic
from shears.adapt.load import load_super_adapter
from shears.adapt.polar import fold_polar, make_polar
from shears.adapt.prepare import add_lora, build_space
from shears.adapt.space import RankConfig
from shears.adapt.train import train
from shears.config import EvaluateConfig, TrainConfig
from shears.errors import InputError
from shears.evaluation.continuous import open_native_ranks, wanted_for
from shears.export.package import unpack
from shears.export.stage import export_adapter
from shears.models.blocks import kronecker_update
from shears.models.load import load_with_adapter
from shears.runtime.native import kernels_available
from shears.searching.measure.evaluators import count_sizes
from shears.sparsity.stage import sparsify
from tests.adapt.prepared import prepared_on
from tests.adapt.test_elastic import GROUPS, elastic_model, logits
from tests.oracles import relatives as oracle
from tests.tiny import save_tiny, tiny_model
from tests.training.small_training import SETTINGS, assert_same, stop_after, weights

RANKS = (6, 4, 2)
SCALING = 2.0
RELATIVES: dict[str, dict[str, Any]] = {
    "polar": {"adapter": "polar"},
    "lokr": {"adapter": "lokr"},
}


def polar_model(name: str = "llama", *, nested: bool = False) -> tuple[PeftModel, ElasticAdapter]:
    """The tiny elastic model, its random LoRA written as PoLAR."""
    model, elastic = elastic_model(name)
    elastic.remove()
    elastic = make_elastic(model, elastic.space, nested=nested)
    make_polar(model, 0)
    return model, elastic


@pytest.fixture(autouse=True)
def _small_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LoKr have ranks up to 7 on the tiny model's linears."""
    monkeypatch.setattr(prepare_module, "LOKR_SIDE", 2)


def lokr_model(*, nested: bool = False) -> tuple[PeftModel, ElasticAdapter]:
    """The tiny model with a random LoKr."""
    model = tiny_model("llama")
    space = build_space(model, GROUPS["llama"], RANKS)
    adapted = add_lora(model, space, TrainConfig(data="-", ranks=RANKS, alpha=12, **RELATIVES["lokr"]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lokr_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return adapted, make_elastic(adapted, space, nested=nested)


def with_updates(updates: dict[str, Tensor], name: str = "llama") -> Tensor:
    """Logits of the tiny model with dense updates of its weights."""
    plain = tiny_model(name)
    for linear, update in updates.items():
        plain.get_submodule(linear).get_parameter("weight").data += update.T if name == "gpt2" else update
    return logits(plain)


def polar_updates(model: PeftModel, rank: int) -> dict[str, Tensor]:
    """The oracle's updates of the first ranks, from the parameters that are trained."""
    trained = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    found = {}
    for linear, _ in lora_layers(model, "default"):
        prefix = f"base_model.model.{linear}"
        y = oracle.directions(trained[f"{prefix}.lora_A.default.parametrizations.weight.original"].T)
        x = oracle.directions(trained[f"{prefix}.lora_B.default.parametrizations.weight.original"])
        core = trained[f"{prefix}.lora_B.default.parametrizations.weight.1.core"]
        found[linear] = torch.from_numpy(oracle.polar_update(x, core, y, rank, SCALING)).float()
    return found


def lokr_updates(model: PeftModel, weighed: list[float]) -> dict[str, Tensor]:
    """The oracle's updates with weights for the components, from PEFT's parameters."""
    trained = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    found = {}
    for name in trained:
        if name.endswith("lokr_w1.default"):
            prefix = name.removesuffix("lokr_w1.default")
            w1, w2_a, w2_b = (trained[f"{prefix}{part}.default"] for part in ("lokr_w1", "lokr_w2_a", "lokr_w2_b"))
            linear = prefix.removeprefix("base_model.model.").removesuffix(".")
            found[linear] = torch.from_numpy(oracle.lokr_update(w1, w2_a, w2_b, weighed, SCALING)).float()
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_polar_rank_is_the_sum_of_its_first_components(name: str) -> None:
    model, elastic = polar_model(name)
    with torch.no_grad():  # away from the start, where all of the parameters count
        for key, parameter in model.named_parameters():
            if "parametrizations" in key:
                noise = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key)))
                lower = noise.triu(1) if "lora_A" in key else noise.tril(-1)  # the reflections' part
                parameter.add_(noise if key.endswith("core") else lower)
    for rank in RANKS:
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, rank)))
        expected = with_updates(polar_updates(model, rank), name)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_directions_are_orthonormal_and_stay_so_in_training() -> None:
    model, _ = polar_model()
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), 0.05, weight_decay=0.0)
    before = [factors_of(layer, "default")[0].detach() for _, layer in lora_layers(model, "default")]
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=torch.arange(12).view(2, 6)).logits.square().sum().backward()
        optimizer.step()
    for (_, layer), old in zip(lora_layers(model, "default"), before, strict=True):
        a, b = factors_of(layer, "default")
        x = layer.lora_B["default"].parametrizations.weight[0](layer.lora_B["default"].parametrizations.weight.original)
        torch.testing.assert_close(a @ a.T, torch.eye(6), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.T @ x, torch.eye(6), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(a, old, atol=1e-2)
        assert torch.linalg.matrix_rank(b) == 6


@pytest.mark.parametrize("nested", [False, True])
def test_writing_lora_as_polar_keeps_the_product_and_folding_every_cut(nested: bool) -> None:
    model, elastic = elastic_model()
    elastic.remove()
    elastic = make_elastic(model, elastic.space, nested=nested)
    plain = logits(model)
    make_polar(model, 0)
    if not nested:  # whose diagonal stands between other factors now
        torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-5)
    cuts = []
    for choice in ("maximal", "heuristic", "minimal"):
        elastic.activate(getattr(elastic.space, choice)())
        cuts.append(logits(model))
    fold_polar(model)
    fold_polar(model)  # once more does nothing
    assert not [name for name, _ in model.named_parameters() if "parametrizations" in name]
    elastic.fold()
    for choice, expected in zip(("maximal", "heuristic", "minimal"), cuts, strict=True):
        elastic.activate(getattr(elastic.space, choice)())
        torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_a_lokr_rank_is_the_kronecker_product_of_its_first_components(nested: bool) -> None:
    model, elastic = lokr_model(nested=nested)
    share = [sum(index < rank for rank in RANKS) / 3 for index in range(6)]
    for rank in RANKS:
        elastic.activate(RankConfig(dict.fromkeys(elastic.space.ranks, rank)))
        factor = sum(share) / sum(share[:rank])
        weighed = [factor * each for each in share[:rank]] if nested else [1.0] * rank
        expected = with_updates(lokr_updates(model, weighed))
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    before = logits(model)
    elastic.fold()
    torch.testing.assert_close(logits(model), before)
    elastic.activate(elastic.space.maximal())
    whole = logits(model)
    elastic.remove()
    torch.testing.assert_close(logits(model), whole)  # by PEFT's own layers


def test_a_kronecker_product_is_a_low_rank_product_at_every_rank() -> None:
    generator = torch.Generator().manual_seed(2)
    w1, w2_a, w2_b = (torch.randn(*shape, generator=generator) for shape in ((2, 3), (4, 5), (5, 7)))
    update = kronecker_update(w1, w2_a, w2_b, 0.5)
    assert update.per_rank == 3
    for rank in (5, 3, 1):
        product = update.scaling * update.b[:, : rank * 3] @ update.a[: rank * 3]
        factors = w1.double().numpy(), w2_a.double().numpy(), w2_b.double().numpy()
        expected = oracle.lokr_update(*factors, [1.0] * rank, 0.5)
        torch.testing.assert_close(product.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sampling"), [("polar", "nested"), ("lokr", "uniform")])
def test_every_exported_rank_is_a_stock_peft_adapter_with_the_super_adapters_logits(
    base: Path, data: str, tmp_path: Path, name: str, sampling: str
) -> None:
    output = train(base, tmp_path / "out", data=data, sampling=sampling, **{**SETTINGS, **RELATIVES[name]})
    ours = load_super_adapter(output)
    plain = logits(AutoModelForCausalLM.from_pretrained(base))
    for choice in ("minimal", "heuristic", "maximal"):
        folder = export_adapter(output, tmp_path / choice, ranks=choice)
        stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        ours.elastic.activate(getattr(ours.elastic.space, choice)())
        torch.testing.assert_close(logits(stock), logits(ours.model))
        assert not torch.allclose(logits(stock), plain, atol=1e-3)
    written = json.loads((output / "adapter_config.json").read_text())
    assert written["peft_type"] == ("LOKR" if name == "lokr" else "LORA")
    if name == "polar":  # orthonormal rows, times the roots of the diagonal
        share = torch.tensor([sum(index < rank for rank in RANKS) / 3 for index in range(6)])
        for key, tensor in weights(output).items():
            if key.endswith("lora_A.weight"):
                torch.testing.assert_close(tensor @ tensor.T, share.diag(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(RELATIVES))
def test_an_interrupted_training_resumes_bit_for_bit(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = {**SETTINGS, "data": data, "sampling": "uniform", "max_steps": 4, **RELATIVES[name]}
    whole = train(base, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(base, tmp_path / "cut", **settings)
    assert_same(whole, train(base, tmp_path / "cut", resume=True, **settings))


def test_lokr_is_merged_packed_and_decoded_as_peft_computes_it(base: Path, data: str, tmp_path: Path) -> None:
    output = train(base, tmp_path / "out", data=data, sampling="nested", **{**SETTINGS, **RELATIVES["lokr"]})
    sub = export_adapter(output, tmp_path / "sub", ranks="minimal")
    stock = logits(load_with_adapter(base, sub)[0])
    merged = export_adapter(output, tmp_path / "merged", ranks="minimal", format="merged")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), stock, rtol=1e-4, atol=1e-5)
    package = export_adapter(sub, tmp_path / "package", format="package", values="fp32")
    torch.testing.assert_close(logits(load_with_adapter(package)[0]), stock, rtol=1e-4, atol=1e-5)
    for folder in (output, sub):  # neither vLLM nor llama.cpp reads LoKr
        text = (folder / "README.md").read_text()
        assert "PeftModel.from_pretrained" in text
        assert "vllm" not in text
        assert "--format merged --model" in text
    unpacked = unpack(package, tmp_path / "unpacked")
    found = weights(unpacked / "adapter")
    assert found.keys() == weights(sub).keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in weights(sub).items())
    if kernels_available():
        ours = load_super_adapter(output, device="cpu")
        config = EvaluateConfig(data="-", task="number", precision="fp32", device="cpu")
        native = open_native_ranks(ours.elastic, wanted_for(config))
        assert native is not None
        backend = native.at(ours.elastic.space.minimal())
        found_logits = torch.from_numpy(backend.prefill(0, list(range(6))))
        torch.testing.assert_close(found_logits.flatten(), stock[0, -1], rtol=1e-3, atol=1e-4)  # sums in another order


@pytest.mark.parametrize("sampling", ["maximal", "nested"])
def test_a_polar_rank_begins_as_the_recovery_within_the_first_rows(data: str, tmp_path: Path, sampling: str) -> None:
    save_tiny(tmp_path / "dense")
    pruning: dict[str, Any] = {"num_samples": 4, "sequence_length": 32, "recover_rank": 6, "precision": "fp32"}
    sparse = sparsify(tmp_path / "dense", tmp_path / "sparse", calibration=data, device="cpu", **pruning)
    settings = {**SETTINGS, "data": data, "init": "recovery"}
    lora = prepared_on(sparse, TrainConfig(**settings, sampling="maximal"))
    polar = prepared_on(sparse, TrainConfig(**settings, adapter="polar", sampling=sampling))
    products = {}
    for name, layer in lora_layers(lora.model, "default"):
        a, b = (factor.detach().double() for factor in factors_of(layer, "default"))
        products[name] = (SCALING * b @ a, a)
    for rank in RANKS:
        polar.elastic.activate(RankConfig(dict.fromkeys(polar.elastic.space.ranks, rank)))
        expected = AutoModelForCausalLM.from_pretrained(sparse)
        for name, (product, a) in products.items():
            within = torch.linalg.pinv(a[:rank]) @ a[:rank]
            expected.get_submodule(name).weight.data += (product @ within).float()
        torch.testing.assert_close(logits(polar.model.eval()), logits(expected), rtol=1e-4, atol=1e-5)


def test_a_sparse_polar_adapter_is_merged_into_the_zeros(base: Path, data: str, tmp_path: Path) -> None:
    output = train(base, tmp_path / "out", **SETTINGS, data=data, sparse_adapter=True, adapter="polar")
    merged = export_adapter(output, tmp_path / "merged", ranks="minimal", format="merged-sparse")
    ours = load_super_adapter(output)
    ours.elastic.activate(ours.elastic.space.minimal())
    found = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(found), logits(ours.model), rtol=1e-4, atol=1e-5)


def test_the_sizes_of_lokr_are_those_of_its_factors() -> None:
    model, elastic = lokr_model()
    sizes = count_sizes(elastic, ("parameters", "macs", "nonzeros"))
    small, large = sizes(elastic.space.minimal()), sizes(elastic.space.maximal())
    trained = sum(each.numel() for name, each in model.named_parameters() if "lokr_" in name)
    of_w1 = sum(each.numel() for name, each in model.named_parameters() if "lokr_w1" in name)
    assert large["parameters"] == trained
    assert small["parameters"] == of_w1 + (trained - of_w1) // 3
    base = sum(int(each.count_nonzero()) for each in tiny_model("llama").parameters())
    assert large["nonzeros"] == base + trained
    shapes = [layer.shape for name, layer in model.named_parameters() if "base_layer.weight" in name]
    # two parts of the input by w2_b and w2_a, then w1 (2 x 2) over their outputs
    macs = sum(6 * (inputs + outputs) + 2 * outputs for outputs, inputs in shapes)
    less = sum(4 * (inputs + outputs) for outputs, inputs in shapes)
    assert large["macs"] - small["macs"] == less
    assert large["macs"] - base < macs + large["macs"] - base  # the base's share has no embeddings
    assert elastic.num_macs(elastic.space.maximal()) == macs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": "polar", "shard": True}, "shard is tried with adapter lora only, got adapter polar"),
        ({"adapter": "polar", "quantize_aware": "int4"}, "quantize_aware is tried with adapter lora only"),
        ({"adapter": "lokr", "init": "recovery"}, "lokr needs the default of init, because a Kronecker"),
        ({"adapter": "lokr", "sparse_adapter": True}, "needs the default of sparse_adapter"),
        ({"adapter": "lokr", "quantize": "nf4"}, "needs the default of quantize"),
        ({"adapter": "lokr", "dropout": 0.1}, "needs the default of dropout"),
    ],
)
def test_what_an_adapter_has_not_is_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(data="-", **settings)


def test_ranks_that_have_no_directions_or_no_factors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "LOKR_SIDE", 4)
    model = tiny_model("llama")
    space = build_space(model, ["up_proj+k_proj"], (20, 4))
    adapted = add_lora(model, space, TrainConfig(data="-", ranks=(20, 4), alpha=4))
    with pytest.raises(InputError, match=r"ranks of adapter polar must be at most 16, .*k_proj, got 20"):
        make_polar(adapted, 0)
    for name, ranks, message in (
        ("llama", (6, 4), "ranks of adapter lokr must be below 4, half the longer side of w2 of "),
        ("gpt2", (2, 1), "adapter lokr must be on plain linears, .* is a Conv1D"),
    ):
        model = tiny_model(name)
        space = build_space(model, GROUPS[name], ranks)
        with pytest.raises(InputError, match=message):
            add_lora(model, space, TrainConfig(data="-", ranks=ranks, alpha=4, adapter="lokr"))
