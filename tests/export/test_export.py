"""A sub-adapter is an ordinary PEFT adapter with the outputs of the activated super-adapter."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from shears.adapt.space import RankConfig
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from shears.errors import InputError
from shears.export.peft import export_adapter
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


def chosen(path: Path, config: RankConfig) -> str:
    """Write ranks to a file; return its name."""
    path.write_text(json.dumps(dict(config)))
    return str(path)


def test_a_sub_adapter_is_a_stock_peft_adapter(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    output = export_adapter(super_adapter, tmp_path / "sub", sub_adapter=chosen(tmp_path / "ranks.json", config))
    torch.testing.assert_close(stock(super_adapter, output), activated(super_adapter, config), rtol=0, atol=1e-6)
    tensors = load_file(output / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {6, 4, 3, 1}
    written = json.loads((output / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (6, 9)  # tools that ignore patterns still scale right
    assert written["alpha_pattern"] == {name: rank * 9 / 6 for name, rank in written["rank_pattern"].items()}


def test_padding_is_bit_equal_to_the_activated_super_adapter(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    ranks = chosen(tmp_path / "ranks.json", config)
    output = export_adapter(super_adapter, tmp_path / "sub", sub_adapter=ranks, format="padded")
    assert torch.equal(stock(super_adapter, output), activated(super_adapter, config))
    written = json.loads((output / "adapter_config.json").read_text())
    assert written["rank_pattern"] == written["alpha_pattern"] == {}
    assert {t.shape[0] for n, t in load_file(output / "adapter_model.safetensors").items() if "lora_A" in n} == {6}


def test_a_search_result_names_ranks_by_its_folder_or_a_number(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    entries = [{"ranks": dict.fromkeys(config, 6)}, {"ranks": dict(config)}]
    fingerprint = read_record(super_adapter, "search_space.json")["fingerprint"]
    result = {"super_adapter_fingerprint": fingerprint, "chosen": entries[0], "evaluations": entries}
    (tmp_path / "result.json").write_text(json.dumps(result))
    records = {
        ranks: read_record(export_adapter(super_adapter, tmp_path / f"{number}", sub_adapter=ranks), "sub_adapter.json")
        for number, ranks in enumerate((str(tmp_path), f"{tmp_path / 'result.json'}:2"))
    }
    assert [record["ranks"] for record in records.values()] == [entry["ranks"] for entry in entries]
    assert [record["config"]["sub_adapter"] for record in records.values()] == ["result.json", "result.json:2"]


def test_ranks_that_make_no_sense_are_refused(super_adapter: Path, tmp_path: Path) -> None:
    config = mixed(super_adapter)
    other = {"super_adapter_fingerprint": "f" * 64, "chosen": {"ranks": {}}, "evaluations": []}
    own = {**other, "super_adapter_fingerprint": read_record(super_adapter, "search_space.json")["fingerprint"]}
    cases: dict[str, tuple[object, str]] = {
        "other.json": (other, "the super-adapter must be the one this was made from.*ffffffffffff"),
        "five.json": ({**config, next(iter(config)): 5}, r"must be one of \[6, 4, 3, 1\], got 5"),
        "own.json:1": (own, "must name one of the 0 evaluations"),
        "few.json:1": (dict(config), "must be the result of a search if a number follows"),
        "torn.json": (None, "torn.json cannot be read"),
        "heuristik": (None, "sub_adapter must be heuristic, maximal, minimal or a JSON file, got '.*heuristik'"),
    }
    for name, (content, message) in cases.items():
        if ".json" in name:
            (tmp_path / name.split(":")[0]).write_text("[1" if content is None else json.dumps(content))
        with pytest.raises(InputError, match=message):
            export_adapter(super_adapter, tmp_path / "sub", sub_adapter=str(tmp_path / name))
    with pytest.raises(InputError, match="format peft needs no option model, got model=elsewhere"):
        export_adapter(super_adapter, tmp_path / "sub", model="elsewhere")
    assert [path.name for path in tmp_path.iterdir() if "sub" in path.name] == []
