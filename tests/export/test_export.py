"""A sub-adapter is an ordinary PEFT adapter with the outputs of the activated super-adapter."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from shears.adapt.load import load_super_adapter
from shears.adapt.space import RankConfig
from shears.adapt.train import train
from shears.errors import InputError
from shears.export.peft import padded, sliced
from shears.export.stage import export_adapter
from shears.records.artifacts import read_record
from tests.tiny import save_tiny

IDS = torch.arange(20).view(2, 10)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def super_adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained super-adapter of ranks 6, 4, 3, 1 (not all of them halves of another: scaling must come out right)."""
    folder = tmp_path_factory.mktemp("export")
    base = save_tiny(folder / "base", request.param)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{a}+{a}=", "completion": f"{2 * a}"}) + "\n" for a in range(24)))
    groups = {"llama": "q_proj+k_proj+v_proj,up_proj,down_proj", "gpt2": "c_attn,c_fc"}[request.param]
    return train(base, folder / "super", data=str(data), ranks=(6, 4, 3, 1), groups=groups, alpha=9, batch_size=4,
                 learning_rate=0.05, max_steps=12, device="cpu", sampling="uniform")  # fmt: skip


def mixed(super_adapter: Path) -> RankConfig:
    """A configuration in which neighbouring groups differ."""
    space = load_super_adapter(super_adapter).elastic.space
    return RankConfig({group: (6, 4, 3, 1)[index % 4] for index, group in enumerate(space.ranks)})


def activated(super_adapter: Path, config: RankConfig) -> Tensor:
    """Logits of the super-adapter with the ranks active."""
    loaded = load_super_adapter(super_adapter)
    loaded.elastic.activate(config)
    with torch.no_grad():
        return loaded.model(input_ids=IDS).logits  # type: ignore[no-any-return]


def stock(super_adapter: Path, adapter: Path) -> Tensor:
    """Logits through nothing but transformers and PEFT."""
    base = read_record(super_adapter, "search_space.json")["base"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("choice", ["heuristic", "maximal", "minimal"])
def test_a_sub_adapter_is_a_stock_peft_adapter(super_adapter: Path, tmp_path: Path, choice: str) -> None:
    output = export_adapter(super_adapter, tmp_path / "sub", ranks=choice)
    config = getattr(load_super_adapter(super_adapter).elastic.space, choice)()
    torch.testing.assert_close(stock(super_adapter, output), activated(super_adapter, config), rtol=0, atol=1e-6)


def test_mixed_ranks_survive_the_way_through_stock_peft(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    (tmp_path / "ranks.json").write_text(json.dumps(dict(config)))
    output = export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "ranks.json"))
    torch.testing.assert_close(stock(super_adapter, output), activated(super_adapter, config), rtol=0, atol=1e-6)
    shapes = {
        tensor.shape[0] for name, tensor in load_file(output / "adapter_model.safetensors").items() if "lora_A" in name
    }
    assert shapes == {6, 4, 3, 1}


def test_padding_is_bit_equal_to_the_activated_super_adapter(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    (tmp_path / "ranks.json").write_text(json.dumps(dict(config)))
    output = export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "ranks.json"), format="padded")
    assert torch.equal(stock(super_adapter, output), activated(super_adapter, config))
    written = json.loads((output / "adapter_config.json").read_text())
    assert written["rank_pattern"] == written["alpha_pattern"] == {}
    assert {t.shape[0] for n, t in load_file(output / "adapter_model.safetensors").items() if "lora_A" in n} == {6}


def test_tools_that_ignore_patterns_still_scale_right(super_adapter: Path, tmp_path: Path) -> None:
    output = export_adapter(super_adapter, tmp_path / "sub", ranks="minimal")
    written = json.loads((output / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (6, 9)
    assert set(written["rank_pattern"].values()) == {1}
    assert set(written["alpha_pattern"].values()) == {9 * 1 / 6}


def test_the_result_of_a_search_is_taken_from_its_file(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    fingerprint = read_record(super_adapter, "search_space.json")["fingerprint"]
    result = {"super_adapter_fingerprint": fingerprint, "chosen": {"ranks": dict(config)}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    output = export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "result.json"))
    assert read_record(output, "sub_adapter.json")["ranks"] == dict(config)
    by_folder = export_adapter(super_adapter, tmp_path / "same", ranks=str(tmp_path))
    records = [(folder / "sub_adapter.json").read_bytes() for folder in (output, by_folder)]
    assert records[0] == records[1], "the search's folder means its result"
    assert read_record(by_folder, "sub_adapter.json")["ranks_fingerprint"]


def test_the_result_of_another_search_is_refused(super_adapter: Path, tmp_path: Path) -> None:
    result = {"super_adapter_fingerprint": "f" * 64, "chosen": {"ranks": {}}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="the super-adapter must be the one this was made from.*ffffffffffff"):
        export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "result.json"))
    assert not (tmp_path / "sub").exists()


def test_ranks_that_make_no_sense_are_refused(super_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ranks must be heuristic, maximal, minimal or a JSON file, got 'heuristik'"):
        export_adapter(super_adapter, tmp_path / "sub", ranks="heuristik")
    (tmp_path / "ranks.json").write_text(json.dumps({**mixed(super_adapter), next(iter(mixed(super_adapter))): 5}))
    with pytest.raises(InputError, match=r"must be one of \[6, 4, 3, 1\], got 5"):
        export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "ranks.json"))
    (tmp_path / "ranks.json").write_text("[1")
    with pytest.raises(InputError, match="cannot be read"):
        export_adapter(super_adapter, tmp_path / "sub", ranks=str(tmp_path / "ranks.json"))
    assert [path.name for path in tmp_path.iterdir() if "sub" in path.name] == []


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_padded_and_sliced_make_the_same_product(rank: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(6, inputs, generator=generator), torch.randn(outputs, 6, generator=generator)
    name = "base_model.model.layers.0.x"
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    small, large = sliced(tensors, {"layers.0.x": rank}), padded(tensors, {"layers.0.x": rank})
    products = [found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"] for found in (small, large)]
    torch.testing.assert_close(products[0], b[:, :rank] @ a[:rank])
    torch.testing.assert_close(products[1], products[0])
    assert torch.equal(large[f"{name}.lora_A.weight"][rank:], torch.zeros(6 - rank, inputs))


def test_a_number_behind_a_result_is_that_configuration(super_adapter: Path, tmp_path: Path) -> None:
    config, path = mixed(super_adapter), tmp_path / "result.json"
    entries = [{"ranks": dict.fromkeys(config, 6)}, {"ranks": dict(config)}]
    fingerprint = read_record(super_adapter, "search_space.json")["fingerprint"]
    path.write_text(
        json.dumps({"super_adapter_fingerprint": fingerprint, "chosen": entries[0], "evaluations": entries})
    )
    output = export_adapter(super_adapter, tmp_path / "sub", ranks=f"{path}:2")
    record = read_record(output, "sub_adapter.json")
    assert record["ranks"] == dict(config)
    assert record["config"]["ranks"] == "result.json:2"
    for number in (0, 3):
        with pytest.raises(InputError, match="must be one of the 2 configurations evaluated, from 1 to 2"):
            export_adapter(super_adapter, tmp_path / "other", ranks=f"{path}:{number}")
    (tmp_path / "ranks.json").write_text(json.dumps(dict(config)))
    with pytest.raises(InputError, match="must be a search's result where a number is given"):
        export_adapter(super_adapter, tmp_path / "other", ranks=f"{tmp_path / 'ranks.json'}:1")
