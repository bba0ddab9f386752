"""The recovery is the best low-rank product for the inputs, stock PEFT loads it, and an adapter can start from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shears import inspect, sparsify
from shears.adapt.elastic import ElasticAdapter, lora_layers
from shears.adapt.groups import build_space, target_modules
from shears.adapt.space import RankConfig
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.models import recovery
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.models.load import load_model, load_with_adapter
from shears.models.recovery import recover, start_from_recovery
from shears.models.ref import resolve
from shears.records.artifacts import RECOVERY_FOLDER, SPARSITY, read_record, weights_fingerprint
from shears.sparsity.prune import sparsify_model
from tests.oracles import eckart_young
from tests.tiny import VOCABULARY, save_tiny, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))
Factors = tuple[Tensor, Tensor]  # B and A
KINDS = ["norms", "nothing"]
GROUPS = {"llama": ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_fc+mlp.c_proj")}


def problem(seed: int, outputs: int, inputs: int, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """Return what half of the zeros took away, and correlated inputs of different sizes (tokens x inputs)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * (0.2 + torch.rand(inputs, generator=generator))
    weight = torch.randn(outputs, inputs, generator=generator)
    removed = weight * (torch.rand(outputs, inputs, generator=generator) < 0.5)
    return removed, torch.randn(tokens, inputs, generator=generator) @ mixing


def solved(removed: Tensor, seen: Tensor, rank: int, kind: str) -> tuple[Factors, eckart_young.Array]:
    """Return our recovery and the metric of its error."""
    exact = seen.double()
    norms = exact.square().sum(0).sqrt()
    metric = norms.square().diag() if kind == "norms" else torch.eye(len(norms))
    return recover(removed, rank, norms if kind == "norms" else None), metric.double().numpy()


def errors(removed: Tensor, found: Factors, metric: eckart_young.Array) -> list[float]:
    """Return the error of every nested rank from 0."""
    b, a = (factor.double() for factor in found)
    return [
        eckart_young.error(removed.double().numpy(), (b[:, :rank] @ a[:rank]).numpy(), metric)
        for rank in range(len(a) + 1)
    ]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), rank=st.integers(1, 15),
    tokens=st.integers(0, 20), idle=st.integers(0, 12), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_every_nested_rank_has_the_least_error_and_is_balanced_and_finite(
    seed: int, shape: tuple[int, int], rank: int, tokens: int, idle: int, kind: str
) -> None:
    removed, seen = problem(seed, *shape, tokens)
    seen[:, :idle] = 0.0  # features that no token has, or all of them
    found, metric = solved(removed, seen, rank, kind if seen.any() else "nothing")
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    b, a = found
    assert len(a) == min(rank, *shape)
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    np.testing.assert_allclose(errors(removed, found, metric), best[: len(a) + 1], rtol=1e-4, atol=1e-5 * best[0])
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 150), (150, 60)])
def test_large_linears_come_within_a_percent_of_the_optimum(
    shape: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "EXACT", 0)
    removed, seen = problem(4, *shape, 300)
    found, metric = solved(removed, seen, 12, kind)
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    got = errors(removed, found, metric)
    assert all(best[rank] * (1 - 1e-4) <= got[rank] <= 1.01 * best[rank] for rank in range(13))
    assert torch.equal(found[0], solved(removed, seen, 12, kind)[0][0])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_recovery_is_the_best_for_the_inputs_that_its_linear_was_pruned_on(name: str) -> None:
    model, mixed = tiny_model(name), tiny_model(name)  # the blocks of the second become sparse one after the other
    config = SparsifyConfig(method="wanda", recover_rank=6, precision="fp32")
    found = sparsify_model(model, list(TOKENS.split(2)), config).recovered
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(decoder_blocks(mixed)[1]):
        inputs: dict[str, Tensor] = {}
        for linear in (linear for linear in linears(mixed) if linear.startswith(f"{prefix}.{index}.")):
            hook = linears(mixed)[linear].register_forward_pre_hook(
                lambda _, given, linear=linear, inputs=inputs: inputs.update({linear: given[0].flatten(0, -2).double()})
            )
            with torch.no_grad():
                mixed(input_ids=TOKENS)
            hook.remove()
            removed = weight_oi(linears(mixed)[linear]) - weight_oi(linears(model)[linear])
            moments = (inputs[linear].T @ inputs[linear]).numpy()
            metric = np.diag(np.diag(moments))
            expected = eckart_young.approximation(removed.detach().double().numpy(), metric, 6)
            b, a = found.linears[linear]
            product = (b @ a).numpy()
            assert np.abs(product - expected).max() < 1e-4 * np.abs(expected).max(), linear
        block.load_state_dict(blocks[index].state_dict())


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[..., Path]:
    """Prune a tiny model with a recovery of rank 8."""
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in TOKENS.tolist()))

    def run(name: str = "llama", output: str = "sparse", **settings: Any) -> Path:
        base = tmp_path / f"base_{name}"
        if not base.exists():
            save_tiny(base, name)
        given = {"method": "wanda", "recover_rank": 8, "precision": "fp32", "num_samples": 6, **settings}
        return sparsify(base, tmp_path / output, calibration=str(file), **given)

    return run


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS[:3, :16]).logits
    return result


def with_recovery(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(folder / RECOVERY_FOLDER)).eval()


def closeness(folder: Path, name: str) -> float:
    """Return the distance to the dense model's logits that the recovery leaves, as a share of the sparse model's."""
    dense, pruned = logits(tiny_model(name)), logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    return float((logits(with_recovery(folder)) - dense).norm() / (pruned - dense).norm())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"method": "sparsegpt"}),
        ("gpt2", {"method": "admm"}),
        ("llama", {"pattern": "2:4"}),
        ("mixtral", {}),
        ("mamba", {}),
    ],
)
def test_stock_peft_loads_it_and_it_brings_the_model_nearer_to_the_dense_one(
    name: str, changes: dict[str, Any], sparse: Callable[..., Path]
) -> None:
    folder, without = sparse(name, **changes), sparse(name, "without", **{**changes, "recover_rank": 0})
    assert closeness(folder, name) < 0.95
    assert weights_fingerprint(folder) == weights_fingerprint(without)
    assert not (without / RECOVERY_FOLDER).exists()


def test_what_carries_no_lora_is_left_out(sparse: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    sparse("mixtral")
    assert "pruned weights get no recovery, because PEFT cannot put LoRA on them" in caplog.text
    with pytest.raises(InputError, match="recover_rank needs a pruned linear that PEFT supports"):
        sparse("mixtral", "none", skip=r"(?!.*experts\.gate_up_proj).*")


def test_the_record_says_what_it_is_and_other_bases_are_refused(sparse: Callable[..., Path], tmp_path: Path) -> None:
    folder = sparse()
    data = inspect(folder / RECOVERY_FOLDER)
    sides = [sum(each["shape"]) for each in read_record(folder, SPARSITY)["linears"].values()]
    assert (data["kind"], data["parameters"]) == ("recovery", 8 * sum(sides))
    with pytest.raises(InputError, match="must be the one this was made from"):
        load_with_adapter(str(tmp_path / "base_llama"), str(folder / RECOVERY_FOLDER))


def start(folder: Path, rank: int, alpha: float, name: str = "llama") -> PeftModel:
    """A new adapter on the linears of GROUPS, scaled by alpha / rank, that starts from the recovery."""
    model = load_model(folder)
    targets = target_modules(model, build_space(model, GROUPS[name], (rank,)))
    torch.manual_seed(2)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=name == "gpt2")
    peft_model = get_peft_model(model, config).eval()
    start_from_recovery(lora_layers(peft_model, "default"), resolve(folder))
    return peft_model


@pytest.mark.parametrize("name", list(GROUPS))
def test_every_rank_of_the_start_is_the_recovery_of_that_rank_at_any_scaling(
    name: str, sparse: Callable[..., Path]
) -> None:
    folder = sparse(name)
    tensors = load_file(folder / RECOVERY_FOLDER / "adapter_model.safetensors")
    for alpha in (6, 64):
        model = start(folder, 8, alpha, name)
        space = build_space(load_model(folder), GROUPS[name], (8, 5, 1))
        elastic = ElasticAdapter(model, space)
        for rank in (8, 5, 1):
            elastic.activate(RankConfig(dict.fromkeys(space.ranks, rank)))
            plain = load_model(folder)
            for linear in space.linears:
                a, b = (tensors[f"base_model.model.{linear}.lora_{side}.weight"] for side in "AB")
                weight_oi(plain.get_submodule(linear)).data += b[:, :rank] @ a[:rank]
            torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-4)


def test_a_missing_or_foreign_recovery_is_refused_in_one_line(sparse: Callable[..., Path], tmp_path: Path) -> None:
    folder = sparse(skip="up_proj")
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj has none; leave it out of groups"):
        start(folder, 6, 6)
    with pytest.raises(InputError, match=r"needs .*/base_llama/recovery, which does not exist; prune with"):
        start(tmp_path / "base_llama", 6, 6)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="base model of .*/recovery must be the one this was made from"):
        start_from_recovery([], resolve(folder))
