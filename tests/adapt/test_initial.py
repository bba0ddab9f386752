"""An adapter starts from the recovery, or, with PiSSA, without a change of the model's outputs."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shears.adapt.elastic import make_elastic
from shears.adapt.initial import start_from_principal, start_from_recovery, without_start
from shears.adapt.prepare import build_space, target_modules
from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.models.blocks import linears, weight_oi
from shears.models.load import load_model
from shears.models.ref import resolve
from shears.records.artifacts import RECOVERY_FOLDER
from shears.sparsity.stage import sparsify
from tests.tiny import VOCABULARY, save_tiny

IDS = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))
GROUPS = {"llama": ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_fc+mlp.c_proj")}
NAMES = list(GROUPS)


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[..., Path]:
    """Prune a tiny model with a recovery of rank 8."""
    file = tmp_path / "ids.jsonl"
    tokens = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in tokens.tolist()))

    def run(name: str = "llama", **settings: Any) -> Path:
        base, given = (
            save_tiny(tmp_path / "base", name),
            {"method": "wanda", "recover_rank": 8, "precision": "fp32", **settings},
        )
        return sparsify(base, tmp_path / "sparse", calibration=str(file), num_samples=4, **given)

    return run


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def with_lora(folder: Path, rank: int = 6, alpha: float = 9.0, name: str = "llama", **changes: Any) -> PeftModel:
    """A fresh adapter on the linears of GROUPS, scaled by alpha / rank."""
    model = load_model(folder)
    space = build_space(model, GROUPS[name], (rank,))
    config = {"target_modules": target_modules(model, space), "fan_in_fan_out": name == "gpt2", **changes}
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, task_type="CAUSAL_LM", **config)).eval()


def adapter_of(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's parameters by the names that PEFT gives them in a file."""
    named = dict(model.named_parameters())
    return {name.replace(".default", ""): value.detach() for name, value in named.items() if ".lora_" in name}


def truncated(folder: Path, name: str, rank: int, output: Path) -> Path:
    """Oracle: the recovery's first components of the adapter's linears, as a PEFT folder written by hand."""
    source = folder / RECOVERY_FOLDER
    wanted = {
        linear for names in build_space(load_model(folder), GROUPS[name], (1,)).modules.values() for linear in names
    }
    tensors = {}
    for key, tensor in load_file(source / "adapter_model.safetensors").items():
        if key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] in wanted:
            tensors[key] = (tensor[:rank] if "lora_A" in key else tensor[:, :rank]).contiguous()
    config = json.loads((source / "adapter_config.json").read_text())
    config |= {"r": rank, "lora_alpha": rank, "target_modules": sorted(wanted)}
    output.mkdir()
    (output / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, output / "adapter_model.safetensors")
    return output


@pytest.mark.parametrize("alpha", [6, 9, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_recovery_of_that_rank_at_any_scaling(
    name: str, alpha: int, sparse: Callable[..., Path], tmp_path: Path
) -> None:
    folder = sparse(name)
    model = with_lora(folder, 6, alpha, name)
    start_from_recovery(model, resolve(folder))
    stock = PeftModel.from_pretrained(load_model(folder), str(truncated(folder, name, 6, tmp_path / "cut")))
    torch.testing.assert_close(logits(model), logits(stock), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(model), logits(load_model(folder)), atol=1e-3)


def test_the_start_of_the_recoverys_own_rank_is_the_recovery(sparse: Callable[..., Path]) -> None:
    folder = sparse(skip="o_proj,gate_proj")
    model = with_lora(folder, 8, 64)
    start_from_recovery(model, resolve(folder))
    stock = PeftModel.from_pretrained(load_model(folder), str(folder / RECOVERY_FOLDER))
    torch.testing.assert_close(logits(model), logits(stock), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_nested_rank_is_the_truncated_recovery(name: str, sparse: Callable[..., Path], tmp_path: Path) -> None:
    folder = sparse(name, recover_by="moments")
    model = with_lora(folder, 8, 16, name)
    start_from_recovery(model, resolve(folder))
    space = build_space(load_model(folder), GROUPS[name], (8, 5, 3, 1))
    elastic = make_elastic(model, space)
    for rank in (8, 5, 3, 1):
        elastic.activate(RankConfig(dict.fromkeys(space.ranks, rank)))
        stock = PeftModel.from_pretrained(load_model(folder), str(truncated(folder, name, rank, tmp_path / str(rank))))
        torch.testing.assert_close(logits(model), logits(stock), atol=1e-5, rtol=1e-4)


def test_parameters_keep_their_order_dtype_and_size(sparse: Callable[..., Path]) -> None:
    folder = sparse()
    model = with_lora(folder)
    before = [(name, value.dtype, value.shape, value.requires_grad) for name, value in model.named_parameters()]
    start_from_recovery(model, resolve(folder))
    assert before == [(name, value.dtype, value.shape, value.requires_grad) for name, value in model.named_parameters()]


def test_a_smaller_recovery_fills_the_first_rows_and_the_others_can_learn(
    sparse: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = sparse(recover_rank=4)
    model, fresh = with_lora(folder, 6, 6), with_lora(folder, 6, 6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1.0)  # must not survive
    with caplog.at_level(logging.WARNING):
        start_from_recovery(model, resolve(folder))
    assert caplog.messages[-1] == "10 linears start with fewer recovered components than their rank, with 4 at least"
    tensors, adapter, random = (
        load_file(folder / RECOVERY_FOLDER / "adapter_model.safetensors"),
        *map(adapter_of, (model, fresh)),
    )
    for name, tensor in adapter.items():
        if "lora_A" in name:
            assert torch.equal(tensor[:4], tensors[name])
            assert torch.equal(tensor[4:], random[name][4:])
        else:
            assert torch.equal(tensor[:, :4], tensors[name])
            assert not tensor[:, 4:].any()


def test_components_without_energy_leave_rows_that_can_learn(sparse: Callable[..., Path]) -> None:
    folder = sparse(sparsity=0.0)  # nothing was taken away
    model, fresh = with_lora(folder), with_lora(folder)
    start_from_recovery(model, resolve(folder))
    adapter, random = adapter_of(model), adapter_of(fresh)
    assert all(torch.equal(adapter[name], random[name]) for name in adapter)


def test_a_missing_or_foreign_recovery_is_refused_in_one_line(sparse: Callable[..., Path], tmp_path: Path) -> None:
    folder = sparse(skip="up_proj")
    with pytest.raises(InputError, match=r"has none of model\.layers\.0\.mlp\.up_proj; leave it out of groups"):
        start_from_recovery(with_lora(folder), resolve(folder))
    with pytest.raises(InputError, match=r"init recovery needs .*/base/recovery; make it with shears sparsify --rec"):
        start_from_recovery(with_lora(tmp_path / "base"), resolve(tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="base model of .*/recovery must be the one this was made from"):
        start_from_recovery(with_lora(tmp_path / "base"), resolve(folder))
    save_file({"other": torch.zeros(1)}, folder / RECOVERY_FOLDER / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"must be those of recovery\.json"):
        start_from_recovery(with_lora(tmp_path / "base"), resolve(folder))


@pytest.mark.parametrize("alpha", [6, 9, 64])
@pytest.mark.parametrize("name", NAMES)
def test_pissa_moves_the_principal_part_and_leaves_the_function(name: str, alpha: int, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    original, model = load_model(base), with_lora(base, 6, alpha, name)
    start = start_from_principal(model)
    torch.testing.assert_close(logits(model), logits(original), atol=1e-5, rtol=1e-4)
    assert start.keys() == adapter_of(model).keys()
    assert all(torch.equal(start[key], value) for key, value in adapter_of(model).items())
    for key in (key for key in start if "lora_A" in key):
        linear = key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        weight = weight_oi(linears(original)[linear]).detach().double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        expected = left[:, :6] * values[:6] @ right[:6]
        b, a = start[key.replace("lora_A", "lora_B")], start[key]
        torch.testing.assert_close(alpha / 6 * b @ a, expected.float(), atol=1e-5, rtol=1e-4)
        rest = model.get_base_model().get_submodule(linear).get_base_layer()
        torch.testing.assert_close(weight_oi(rest), (weight - expected).float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_its_start_a_trained_pissa_is_a_lora_of_twice_the_rank(name: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    model = with_lora(base, 6, 9, name)
    start = start_from_principal(model)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:  # as training would change it
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter = without_start(adapter_of(model), start)
    plain = with_lora(base, 12, 18, name)
    named = dict(plain.named_parameters())
    for key, tensor in adapter.items():
        parameter = named[key.replace(".weight", ".default.weight")]
        assert parameter.shape == tensor.shape
        parameter.data.copy_(tensor)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(plain), logits(load_model(base)), atol=1e-2)


def test_pissa_takes_ranks_above_a_linears_smaller_side(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = with_lora(base, 20, 20)
    assert model.get_base_model().get_submodule("model.layers.0.self_attn.k_proj").out_features == 16
    start_from_principal(model)
    torch.testing.assert_close(logits(model), logits(load_model(base)), atol=1e-5, rtol=1e-4)


def test_pissa_needs_plain_weights_of_their_own(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    quantized = with_lora(base)
    first = quantized.get_base_model().get_submodule("model.layers.0.mlp.up_proj").get_base_layer()
    first.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj is quantized"):
        start_from_principal(quantized)
    shared = with_lora(base)
    layers = [shared.get_base_model().get_submodule(f"model.layers.{index}.mlp.up_proj") for index in (0, 1)]
    layers[1].get_base_layer().weight = layers[0].get_base_layer().weight
    with pytest.raises(
        InputError,
        match=r"model\.layers\.1\.mlp\.up_proj shares its weight with another",
    ):
        start_from_principal(shared)
