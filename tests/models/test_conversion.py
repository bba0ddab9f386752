"""Conversion between files and model in both directions; unsupported checkpoints; transformers' private parts."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, conversion_mapping, core_model_loading
from transformers.utils import logging as transformers_logging

from shears.checkpoints.tensor_files import SINGLE, TensorWriter
from shears.checkpoints.without_code import UnsupportedCheckpoint
from shears.errors import InputError
from shears.models.sources import StreamedModel
from tests.parts import LLAMA, assert_same, block_names, copied, reference, rewrite, save
from tests.tiny import save_tiny


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_files_without_the_prefix_of_the_base_model_keep_their_names(name: str, tmp_path: Path) -> None:
    save(tmp_path / "m", name, shard="1GB")
    rewrite(tmp_path / "m", lambda tensors: {key.split(".", 1)[1]: tensor for key, tensor in tensors.items()})
    expected, source = reference(tmp_path / "m").state_dict(), StreamedModel(tmp_path / "m")
    block = block_names(source)[0]
    key = next(key for key, p in source.model.get_submodule(block).named_parameters(prefix=block) if p.ndim > 1)
    assert source.disk_names(key) == [key.split(".", 1)[1]]
    source.writer = TensorWriter(source.files, copied(tmp_path / "m", tmp_path / "out"))
    with source.opened(0):
        source.model.get_parameter(key).data.zero_()
        source.keep([key])
    source.writer.finish()
    assert_same(expected | {key: torch.zeros_like(expected[key])}, reference(tmp_path / "out").state_dict())


def test_tensors_that_the_model_does_not_use_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", shard="1GB")
    rewrite(tmp_path / "m", lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)})
    source = StreamedModel(tmp_path / "m")
    source.writer = TensorWriter(source.files, copied(tmp_path / "m", tmp_path / "out"))
    with source.opened(0) as layer:
        source.keep([name for name, _ in layer.named_parameters(prefix="model.layers.0")])
    source.writer.finish()
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "m" / SINGLE).read_bytes()


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_that_is_also_stored(equal: bool, tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", shard="1GB")
    embedding = load_file(tmp_path / "m" / SINGLE)["model.embed_tokens.weight"]
    rewrite(tmp_path / "m", lambda tensors: tensors | {"lm_head.weight": embedding * (1 if equal else 2)})
    expected, source = reference(tmp_path / "m").state_dict(), StreamedModel(tmp_path / "m")
    head = source.model.get_parameter("lm_head.weight")
    assert (head is source.model.get_parameter("model.embed_tokens.weight")) == equal
    assert torch.equal(head, expected["lm_head.weight"])


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.experts.2.down_proj.weight", "model.norm.weight"])
def test_a_weight_that_the_files_lack_is_refused(lost: str, tmp_path: Path) -> None:
    save(tmp_path, "qwen3_moe", shard="1GB")
    rewrite(tmp_path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != lost})
    with pytest.raises(InputError, match=rf"1 are missing .*{lost[:16]}.*complete checkpoint"):
        StreamedModel(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "must not be quantized"),
        ({"model_type": "nonsense", "auto_map": {"AutoConfig": "configuration.Config"}}, "transformers knows"),
        ({"model_type": "t5"}, "cannot be read: Unrecognized configuration"),
        ({"intermediate_size": 40}, "missing or of another shape"),
    ],
)
def test_unsupported_checkpoints_are_an_error_of_one_line(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    config = json.loads((save_tiny(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=match) as caught:
        StreamedModel(tmp_path)
    assert "\n" not in str(caught.value)


def test_blocks_that_share_weights_are_left_to_a_whole_load(tmp_path: Path) -> None:
    hybrid = {"hybrid_layer_ids": [1, 3], "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
    size = {"num_hidden_layers": 4, "mamba_d_state": 8, "n_mamba_heads": 4, "num_mem_blocks": 1}
    config = AutoConfig.for_model("zamba2", **{**LLAMA, **hybrid, **size, "tie_word_embeddings": True})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=r"must share no weights, model\.layers\.3"):
        StreamedModel(tmp_path)


def test_tensors_are_read_one_by_one_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads, transformers holds all that it reads at once, beside what it makes of it."""
    save(tmp_path, "mixtral")
    monkeypatch.delattr(core_model_loading, "ThreadPoolExecutor")
    source = StreamedModel(tmp_path)
    with source.opened(1) as block:
        assert not any(parameter.is_meta for parameter in block.parameters())


PRIVATE: list[tuple[Any, list[str]]] = [
    (core_model_loading.convert_and_load_state_dict_in_model,
     ["model", "state_dict", "load_config", "disk_offload_index"]),
    (core_model_loading.rename_source_key,
     ["source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict", "reverse"]),
    (core_model_loading.revert_weight_conversion, ["model", "state_dict"]),
    (conversion_mapping.get_model_conversion_mapping, ["model", "key_mapping", "hf_quantizer", "add_legacy"]),
    (PreTrainedModel._move_missing_keys_from_meta_to_device,
     ["self", "missing_keys", "device_map", "device_mesh", "hf_quantizer"]),
    (PreTrainedModel._initialize_missing_keys, ["self", "is_quantized"]),
    (PreTrainedModel._adjust_missing_and_unexpected_keys, ["self", "loading_info"]),
    (PreTrainedModel.mark_tied_weights_as_initialized, ["self", "loading_info"]),
    (PreTrainedModel.tie_weights, ["self", "missing_keys", "recompute_mapping"]),
    (PreTrainedModel._get_dtype_plan, ["self", "dtype"]),
    (transformers_logging.set_tqdm_hook, ["hook"]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "parameters"), PRIVATE, ids=[function.__name__ for function, _ in PRIVATE])
def test_the_private_parts_of_transformers_are_as_expected(function: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters, (
        "transformers changed: see shears/models/sources.py"
    )
    fields = inspect.signature(transformers.modeling_utils.LoadStateDictConfig).parameters
    assert {"device_map", "dtype", "dtype_plan", "weight_mapping"} <= set(fields)
