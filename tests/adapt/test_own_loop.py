"""`elastic.save` writes what `train` writes, whole or not at all, and only for the model that it was trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import shears
from shears.adapt.elastic import ElasticAdapter
from shears.adapt.groups import build_space
from shears.adapt.super_adapter import load_super_adapter
from shears.adapt.train import train
from shears.errors import InputError
from shears.records.folders import partial_folder
from tests.adapt.test_elastic import GROUPS, logits
from tests.training.small_training import SETTINGS, weights


def own(base: Path, adapter: str = "default", **changes: Any) -> ElasticAdapter:
    """An elastic adapter as a loop of one's own has it after the training: B is no longer zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    space = build_space(model, GROUPS["llama"], (6, 4, 2))
    linears = [name for names in space.modules.values() for name in names]
    lora = LoraConfig(**{"r": 6, "lora_alpha": 12, "target_modules": linears, **changes})
    peft_model = get_peft_model(model, lora, adapter_name=adapter)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return ElasticAdapter(peft_model, space, adapter)


@pytest.mark.parametrize(("adapter", "nested"), [("default", False), ("mine", False), ("default", True)])
def test_a_saved_adapter_is_loaded_with_its_space_and_weights(
    base: Path, tmp_path: Path, adapter: str, nested: bool
) -> None:
    elastic = own(base, adapter)
    if nested:
        elastic.remove()
        elastic = ElasticAdapter(elastic.model, elastic.space, nested=True)
    elastic.activate(elastic.space.minimal())  # what is active does not matter
    before = {name: tensor.clone() for name, tensor in elastic.model.state_dict().items()}
    loaded = load_super_adapter(elastic.save(tmp_path / "super", base=base), device="cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in elastic.model.state_dict().items())
    assert loaded.elastic.space == elastic.space
    for choice in ("maximal", "heuristic", "minimal"):
        ranks = getattr(elastic.space, choice)()
        elastic.activate(ranks)
        loaded.elastic.activate(ranks)
        torch.testing.assert_close(logits(loaded.model), logits(elastic.model))


def test_the_record_has_the_keys_of_train(base: Path, data: str, tmp_path: Path) -> None:
    saved = own(base).save(tmp_path / "own", data=data)  # the base is the folder that the model was loaded from
    settings = {**SETTINGS, "max_steps": 1, "warmup_steps": 0, "sampling": "uniform"}
    trained = train(base, tmp_path / "trained", data=data, **settings)
    mine, theirs = (json.loads((folder / "search_space.json").read_text()) for folder in (saved, trained))
    assert theirs.keys() - mine.keys() == {"num_steps", "data_fingerprint", "learning_rate", "init", "form"}
    assert mine.keys() <= theirs.keys()
    same = (
        "base", "base_fingerprint", "data_sha256", "alpha", "max_rank", "num_parameters", "groups", "template",
    )  # fmt: skip
    assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
    assert weights(saved).keys() == weights(trained).keys()
    assert {path.name for path in trained.iterdir()} - {path.name for path in saved.iterdir()} == {
        "training_log.jsonl", "training_times.jsonl",
    }  # fmt: skip
    assert shears.inspect(saved)["base_fingerprint"] == shears.inspect(base)["fingerprint"]


def other_numbers(elastic: ElasticAdapter) -> None:
    """Change one weight of the base in memory."""
    elastic.model.get_base_model().get_parameter("model.norm.weight").data[3] += 1e-3


def not_finite(elastic: ElasticAdapter) -> None:
    """Let a training diverge."""
    next(p for p in elastic.model.parameters() if p.requires_grad).data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("changes", "change", "about", "message"),
    [
        ({}, other_numbers, {}, "model.norm.weight of .*base differs"),
        ({}, not_finite, {}, "weights of an adapter must be finite"),
        ({}, None, {"base": "no/such/model"}, "a model must be"),
        ({}, None, {"data": "nothing.jsonl"}, "nothing.jsonl"),
        ({"r": 8}, None, {}, "plain LoRA of rank 6, .* got rank 8"),
        ({"modules_to_save": ["norm"]}, None, {}, "plain LoRA .*norm"),
        ({"alpha_pattern": {"up_proj": 3}}, None, {}, "without rank patterns"),
        ({"target_modules": "all-linear"}, None, {}, "on exactly the linears of its search space; .*gate_proj"),
    ],
)
def test_what_no_sub_adapter_can_be_cut_from_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, changes: dict[str, Any], change: Any, about: dict[str, Any], message: str
) -> None:
    elastic = own(base, **changes)
    if change is not None:
        change(elastic)
    with pytest.raises(InputError, match=message):
        elastic.save(tmp_path / "super", **{"base": str(base), **about})
    assert not (tmp_path / "super").exists()
    assert not partial_folder(tmp_path / "super").exists()
