"""Adapters that PEFT made by itself, of kinds that shears does not train: packed exactly, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from shears.adapt.elastic import make_elastic
from shears.adapt.groups import build_space
from shears.adapt.load import load_super_adapter
from shears.errors import InputError
from shears.export.stage import export_adapter
from shears.models.load import load_with_adapter
from shears.records.artifacts import SEARCH_SPACE, weights_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.export.made import half_sparse, logits, super_adapter
from tests.export.packages import change_adapter
from tests.tiny import save_tiny, tiny_model

TASK = "CAUSAL_LM"


def saved(base: Path, adapter: Path, config: Any, size: int | None = None, name: str = "llama") -> Path:
    """Save an adapter of random weights on a model, whose embeddings may have grown; return its folder."""
    torch.manual_seed(0)
    model: Any = tiny_model(name)
    if size is not None:
        model.resize_token_embeddings(size)
    model.name_or_path = str(base)
    model = get_peft_model(model, config)
    for part in model.parameters():
        if part.requires_grad:
            part.data.add_(torch.randn_like(part), alpha=0.3)
    model.save_pretrained(adapter, save_embedding_layers=size is not None)
    return adapter


def lokr() -> LoKrConfig:
    return LoKrConfig(r=6, alpha=9, decompose_factor=2, target_modules=["q_proj", "up_proj"], task_type=TASK)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_an_adapter_that_is_a_prompt_is_refused(kind: Any, tmp_path: Path) -> None:
    """PEFT puts its tokens before every token that is generated behind a cache."""
    base = save_tiny(tmp_path / "base")
    adapter = saved(base, tmp_path / "adapter", kind(task_type=TASK, num_virtual_tokens=3))
    with pytest.raises(InputError, match="adapter must change weights, it puts tokens before the text"):
        load_with_adapter(base, adapter)
    with pytest.raises(InputError, match="a package holds adapters of weights, "):
        export_adapter(adapter, tmp_path / "package", format="package")


def test_an_adapter_of_experts_is_packed(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "mixtral")
    lora = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"], task_type=TASK)
    adapter = saved(base, tmp_path / "adapter", lora, name="mixtral")
    packed, _ = load_with_adapter(export_adapter(adapter, tmp_path / "package", format="package", values="fp32"))
    expected = logits(PeftModel.from_pretrained(tiny_model("mixtral"), adapter).eval())
    torch.testing.assert_close(logits(packed), expected)


def test_an_adapter_that_is_no_lora_is_packed_but_neither_cut_nor_merged(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    adapter = saved(base, tmp_path / "adapter", lokr())
    packed, _ = load_with_adapter(export_adapter(adapter, tmp_path / "package", format="package", values="fp32"))
    loaded: Any = load_with_adapter(base, adapter, device="cpu")[0]
    torch.testing.assert_close(logits(packed), logits(loaded))
    with pytest.raises(InputError, match="every linear of the search space must carry the adapter 'default'; "):
        make_elastic(loaded, build_space(tiny_model(), ["q_proj"], (6, 4)))
    for form in ("peft", "merged"):
        with pytest.raises(InputError, match="adapter must be a super-adapter") as refused:
            export_adapter(adapter, tmp_path / form, format=form)
        assert "\n" not in str(refused.value)


def test_a_super_adapter_that_is_no_lora_is_refused_in_one_line(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    adapter = saved(base, super_adapter(tmp_path / "adapter", base), lokr())
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    (adapter / SEARCH_SPACE).write_text(json.dumps({**record, "fingerprint": weights_fingerprint(adapter)}))
    for form in ("peft", "padded", "merged", "package"):
        with pytest.raises(InputError, match="adapter_config.json must be PEFT's of a LoRA with r and lora_alpha; "):
            export_adapter(adapter, tmp_path / form, format=form)
    with pytest.raises(InputError, match="must carry the adapter 'default'; ") as refused:
        load_super_adapter(adapter, device="cpu")
    assert "\n" not in str(refused.value)


def test_an_adapter_with_more_words_than_the_model_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type=TASK)
    adapter = saved(base, tmp_path / "adapter", lora, size=260)
    with pytest.raises(InputError, match=r"an adapter must fit the model .* is \(257, 32\), .* is \(260, 32\)"):
        export_adapter(adapter, tmp_path / "package", format="package")


def test_an_adapter_that_names_no_base_asks_for_it(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = saved(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"], task_type=TASK))
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="must name its base model, got None; give it with --model"):
        export_adapter(adapter, tmp_path / "package", format="package")
    assert export_adapter(adapter, tmp_path / "package", format="package", model=str(base)).is_dir()


def test_an_adapter_that_does_not_load_is_named_by_its_package(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = saved(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"], task_type=TASK))
    package = export_adapter(adapter, tmp_path / "package", format="package")
    change_adapter(package, r=3)
    with pytest.raises(InputError, match=r"package must be an adapter that PEFT loads .* size mismatch for .*q_proj"):
        load_with_adapter(package)


def test_an_adapter_of_numbers_that_a_package_does_not_hold_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = saved(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"], task_type=TASK))
    tensors = {name: part.to(torch.float8_e4m3fn) for name, part in load_file(adapter / ADAPTER_WEIGHTS).items()}
    save_file(tensors, adapter / ADAPTER_WEIGHTS)
    with pytest.raises(
        InputError, match=r"a package holds plain numbers, .*lora_A.weight is torch.float8_e4m3fn; save"
    ):
        export_adapter(adapter, tmp_path / "out", format="package")
    assert not list(tmp_path.glob("out*"))
