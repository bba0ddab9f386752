"""Models that the native decoder does not cover, and packages with files that contradict each other."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from shears import export_adapter
from shears.checkpoints.package_file import read_package
from shears.errors import InputError
from shears.runtime.loading import load
from shears.runtime.native.architectures import NotCoveredError
from shears.runtime.native.model_source import source_of_model, source_of_package
from tests.export.packages import change_adapter
from tests.runtime.native.decoders import covered, extension_is_missing, running_in, with_lora
from tests.tiny import tiny_tokenizer

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)


def _saved(folder: Path, name: str = "llama, tied head") -> Path:
    """Save a model with its tokenizer; return its folder."""
    covered(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of a model and an adapter, which a test may change."""
    model = covered()
    model.name_or_path = str(_saved(tmp_path / "model"))
    with_lora(model, ["q_proj", "up_proj"]).save_pretrained(tmp_path / "adapter")
    return export_adapter(str(tmp_path / "adapter"), tmp_path / "package", format="package")


def _change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"alora_invocation_tokens": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "VERA"},
        {"a_setting_of_tomorrow": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_an_adapter_that_is_more_than_lora_is_left_to_peft(package: Path, setting: dict[str, Any]) -> None:
    change_adapter(package, **setting)
    with pytest.raises(NotCoveredError, match=f"supports plain LoRA, this adapter has {next(iter(setting))}"):
        source_of_package(read_package(package))


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"alora_invocation_tokens": [7, 8]}, {"lora_bias": True}])
def test_such_an_adapter_in_memory_is_refused(setting: dict[str, Any]) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **setting)
    with pytest.raises(NotCoveredError, match=r"supports one plain LoRA, model.layers.0.self_attn.q_proj has another"):
        source_of_model(get_peft_model(covered("qwen2, biases"), config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "model.embed_tokens.weight must have the shape .257, 64. of the model's config"),
        ({"vocab_size": 1000}, "model.embed_tokens.weight must have the shape .1000, 32. of the model's config"),
        ({"num_attention_heads": 8}, "q_proj.weight must have the shape .64, 32. of"),
        ({"num_key_value_heads": 4}, "k_proj.weight must have the shape .32, 32. of"),
        ({"intermediate_size": 47}, "gate_proj.weight must have the shape .47, 32. of"),
        ({"num_attention_heads": 0}, "config.json cannot be read"),
        (
            {"num_hidden_layers": 1},
            "its config.json must count all its decoder blocks, model.layers.1.* is beyond them",
        ),
        ({"num_hidden_layers": 3}, "must hold every weight"),
        ({"model_type": "nosuch"}, "config.json cannot be read"),
        ({"hidden_size": "x"}, "config.json cannot be read"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    package: Path, change: dict[str, Any], message: str, backend: str
) -> None:
    _change(package / "config.json", **change)
    with running_in(backend), pytest.raises(InputError, match=message if backend == "auto" else None) as caught:
        load(package)
    assert "\n" not in str(caught.value)


NO_PATTERN = {"r": 0, "rank_pattern": {}}


@pytest.mark.parametrize("content", [{"r": None}, NO_PATTERN, {"lora_alpha": "x"}, {"rank_pattern": {"(": 1}}])
def test_invalid_adapter_settings_are_refused(package: Path, content: Any) -> None:
    change_adapter(package, **content)
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read: "):
        load(package)
