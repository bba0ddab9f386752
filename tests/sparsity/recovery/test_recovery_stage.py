"""Pruning can leave an adapter beside the sparse weights that gives back most of what it took; no weight changes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.configuration import UnsupportedCheckpoint
from shears.checkpoints.inspection import inspect
from shears.errors import InputError
from shears.models.blocks import linears, weight_oi
from shears.models.blockwise.sources import Skeleton
from shears.models.load import load_with_adapter
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER, SPARSITY, read_record, weights_fingerprint
from shears.sparsity.stage import sparsify
from tests.sparsity.test_plan import all_but
from tests.tiny import CONFIGS, VOCABULARY, save_tiny, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))
UNSEEN = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(1))
BOTH = ["norms", "moments"]


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Path]:
    """Prune a tiny model with a recovery of rank 8; the folder is `<tmp_path>/<output>`."""
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in TOKENS.tolist()))

    def run(name: str = "llama", output: str = "sparse", **settings: Any) -> Path:
        base = tmp_path / f"base_{name}"
        if not base.exists():
            save_tiny(base, name)
        given = {
            "method": "wanda",
            "calibration": str(file),
            "num_samples": 6,
            "precision": "fp32",
            "recover_rank": 8,
            **settings,
        }
        return sparsify(base, tmp_path / output, **given)

    return run


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=UNSEEN).logits
    return result


def stock(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model


def with_recovery(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(stock(folder), str(folder / RECOVERY_FOLDER)).eval()


def closeness(folder: Path, name: str) -> float:
    """Return the distance to the dense model's logits that the recovery leaves, as a share of the sparse model's."""
    dense, sparse = logits(tiny_model(name)), logits(stock(folder))
    return float((logits(with_recovery(folder)) - dense).norm() / (sparse - dense).norm())


@pytest.mark.parametrize(
    ("name", "by"),
    [*((name, "norms") for name in CONFIGS), *((name, "moments") for name in ("llama", "jamba", "mamba", "rwkv"))],
)
def test_stock_peft_loads_it_and_it_brings_the_model_nearer_to_the_dense_one(
    name: str, by: str, stage: Callable[..., Path]
) -> None:
    folder = stage(name, recover_by=by)
    assert closeness(folder, name) < 0.9


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"method": "magnitude"}),
        ("llama", {"method": "magnitude", "recover_by": "moments"}),
        ("llama", {"method": "sparsegpt"}),
        ("gpt2", {"method": "admm", "recover_by": "moments"}),
        ("llama", {"method": "wanda", "pattern": "2:4"}),
        ("llama", {"reconstruct": "linear", "recover_by": "moments"}),
        ("llama", {"reconstruct": "block"}),
        ("llama", {"allocation": "sensitivity", "sparsity_of": {"down_proj": 0.4}}),
        ("mixtral", {}),
    ],
)
def test_every_method_and_pattern_has_one_and_keeps_its_weights(
    name: str, settings: dict[str, Any], stage: Callable[..., Path]
) -> None:
    folder, without = stage(name, **settings), stage(name, "without", **{**settings, "recover_rank": 0})
    assert closeness(folder, name) < (0.95 if name == "mixtral" else 0.8)  # its experts have none
    assert weights_fingerprint(folder) == weights_fingerprint(without)
    assert read_record(folder, SPARSITY)["linears"] == read_record(without, SPARSITY)["linears"]
    assert not (without / RECOVERY_FOLDER).exists()


def test_the_adapter_on_the_sparse_weights_is_what_was_computed(stage: Callable[..., Path]) -> None:
    for name in ("llama", "gpt2"):
        folder = stage(name, name)
        merged, sparse = with_recovery(folder).merge_and_unload(), stock(folder)
        tensors = load_file(folder / RECOVERY_FOLDER / "adapter_model.safetensors")
        for linear in read_record(folder / RECOVERY_FOLDER, RECOVERY)["linears"]:
            delta = weight_oi(linears(merged)[linear]) - weight_oi(linears(sparse)[linear])
            b, a = (tensors[f"base_model.model.{linear}.lora_{side}.weight"] for side in "BA")
            torch.testing.assert_close(delta, b @ a, atol=1e-6, rtol=0)
            assert isinstance(linears(sparse)[linear], Conv1D) == (name == "gpt2")
        config = json.loads((folder / RECOVERY_FOLDER / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] == (name == "gpt2")


def test_what_carries_no_lora_is_left_out_with_one_warning(
    stage: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name, missing in (("mixtral", "experts"), ("mamba", "out_proj"), ("deepseek_v3", "shared_experts")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            folder = stage(name, name)
        record, pruned = read_record(folder / RECOVERY_FOLDER, RECOVERY), read_record(folder, SPARSITY)["linears"]
        left = pruned.keys() - record["linears"].keys()
        assert any(missing in linear for linear in left)
        sizes = {linear: said["shape"][0] * said["shape"][1] for linear, said in pruned.items()}
        share = sum(sizes[linear] for linear in left) / sum(sizes.values())
        messages = [message for message in caplog.messages if "get no recovery" in message]
        assert len(messages) == 1
        assert messages[0].startswith(f"{100 * share:.1f} %")
        assert closeness(folder, name) < 0.95


def test_experts_alone_have_no_recovery(stage: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recover_rank needs a pruned linear that PEFT puts LoRA on"):
        stage("mixtral", skip=all_but("experts.gate_up_proj"))
    assert not (tmp_path / "sparse").exists()


def test_dense_linears_get_none(stage: Callable[..., Path]) -> None:
    folder = stage(skip=[all_but("q_proj", "down_proj"), r".*layers\.0\.mlp.*"])
    assert list(read_record(folder / RECOVERY_FOLDER, RECOVERY)["linears"]) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert closeness(folder, "llama") < 1.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("settings", [{"recover_by": "moments"}, {"method": "sparsegpt"}])
def test_block_by_block_and_all_at_once_give_the_same_weights_and_adapter(
    name: str, settings: dict[str, str], stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Skeleton:
        raise UnsupportedCheckpoint("this one must be loaded whole")

    streamed = stage(name, "streamed", **settings)
    monkeypatch.setattr(Skeleton, "open", refuse)
    whole = stage(name, "whole", **settings)
    for file in ("model.safetensors", f"{RECOVERY_FOLDER}/adapter_model.safetensors"):
        found, expected = (load_file(folder / file) for folder in (streamed, whole))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert read_record(streamed, SPARSITY)["linears"] == read_record(whole, SPARSITY)["linears"]


@pytest.mark.parametrize("by", BOTH)
def test_two_runs_give_the_same_bytes(by: str, stage: Callable[..., Path]) -> None:
    once, again = (stage(output=output, recover_by=by) / RECOVERY_FOLDER for output in ("once", "again"))
    for name in ("adapter_model.safetensors", RECOVERY):
        assert (once / name).read_bytes() == (again / name).read_bytes()
    one, other = (json.loads((folder / "adapter_config.json").read_text()) for folder in (once, again))
    assert one.pop("base_model_name_or_path") == str(once.parent.resolve())
    assert other.pop("base_model_name_or_path") == str(again.parent.resolve())
    assert list(one.items()) == list(other.items())


def test_ranks_above_a_linears_smaller_side_are_cut(stage: Callable[..., Path]) -> None:
    folder = stage(recover_rank=24)  # k_proj and v_proj have 16 outputs
    config = json.loads((folder / RECOVERY_FOLDER / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (24, 24)
    assert list(config["rank_pattern"].values()) == list(config["alpha_pattern"].values()) == [16]
    ranks = {
        name: layer.lora_A["default"].weight.shape[0]
        for name, layer in with_recovery(folder).named_modules()
        if name.endswith("_proj")
    }
    assert {rank for name, rank in ranks.items() if name.endswith(("k_proj", "v_proj"))} == {16}
    assert {rank for name, rank in ranks.items() if not name.endswith(("k_proj", "v_proj"))} == {24}
    record = read_record(folder / RECOVERY_FOLDER, RECOVERY)
    assert record["linears"]["model.layers.0.self_attn.k_proj"] == {"rank": 16, "kept": pytest.approx(1.0)}


def test_a_rank_above_all_sides_gives_the_dense_model_back(stage: Callable[..., Path]) -> None:
    folder = stage(recover_rank=1000, method="sparsegpt")
    record = read_record(folder / RECOVERY_FOLDER, RECOVERY)
    assert (record["rank"], record["kept"]) == (32, pytest.approx(1.0))
    assert closeness(folder, "llama") < 1e-4


def test_the_record_says_what_it_is_and_other_bases_are_refused(stage: Callable[..., Path], tmp_path: Path) -> None:
    folder = stage()
    recovery = folder / RECOVERY_FOLDER
    record = read_record(recovery, RECOVERY)
    assert record["base_fingerprint"] == weights_fingerprint(folder)
    assert (record["rank"], record["by"]) == (8, "norms")
    data = inspect(recovery, folder)
    assert (data["kind"], data["fits"]) == ("recovery", True)
    assert data["parameters"] == 8 * sum(
        sum(said["shape"]) for said in read_record(folder, SPARSITY)["linears"].values()
    )
    load_with_adapter(str(folder), str(recovery))
    with pytest.raises(InputError, match="must be the one this was made from"):
        load_with_adapter(str(tmp_path / "base_llama"), str(recovery))


def test_a_method_that_looks_at_weights_alone_needs_calibration_for_it(stage: Callable[..., Path]) -> None:
    folder = stage(method="magnitude")
    assert read_record(folder, SPARSITY)["calibration_fingerprint"] is not None
    with pytest.raises(InputError):
        stage(output="other", method="magnitude", calibration="missing.txt")


def test_the_share_and_the_size_are_logged(stage: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = stage()
    kept = read_record(folder / RECOVERY_FOLDER, RECOVERY)["kept"]
    assert f"gives back {100 * kept:.1f} % of what pruning took away (by norms): 0.0" in caplog.text
