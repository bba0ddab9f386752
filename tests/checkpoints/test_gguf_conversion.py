"""A GGUF file becomes, tensor by tensor, the folder that transformers makes of the whole model."""

import logging
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import modeling_gguf_pytorch_utils as of_transformers

from shears.checkpoints import gguf_conversion
from shears.errors import InputError
from shears.models import fetching
from shears.models.fetching import GgufDtype
from shears.models.load import load_model
from tests.models.gguf_files import write_gguf

TIED = ("output",)
WHOLE = "is converted as a whole"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def converted(file: Path, folder: Path, dtype: GgufDtype = "fp32") -> dict[str, bytes]:
    folder.mkdir()
    fetching._convert(file, folder, dtype)
    return contents(folder)


@pytest.mark.parametrize(
    ("architecture", "kind", "without"),
    [
        ("llama", GGMLQuantizationType.F32, ()),
        ("llama", GGMLQuantizationType.Q8_0, TIED),
        ("qwen2", GGMLQuantizationType.Q4_0, ()),
        ("qwen2", GGMLQuantizationType.BF16, TIED),
    ],
)
def test_the_folder_has_the_bytes_that_transformers_writes(
    architecture: str,
    kind: GGMLQuantizationType,
    without: Collection[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, kind=kind, without=without)
    monkeypatch.setattr(gguf_conversion, "CHUNK", 100)  # many pieces a tensor
    with caplog.at_level(logging.INFO):
        by_tensor = converted(file, tmp_path / "by_tensor")
        assert WHOLE not in caplog.text
        monkeypatch.setattr(gguf_conversion, "BY_TENSOR", frozenset())
        assert by_tensor == converted(file, tmp_path / "whole")
        assert caplog.text.count(WHOLE) == 1
    state = load_file(tmp_path / "whole" / "model.safetensors")
    assert ("lm_head.weight" in state) == (without != TIED)
    assert load_model(tmp_path / "by_tensor").dtype == torch.float32


def test_bf16_is_fp32_rounded_once_and_the_configuration_says_so(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    converted(file, tmp_path / "fp32")
    converted(file, tmp_path / "bf16", "bf16")
    fp32, bf16 = (load_file(tmp_path / name / "model.safetensors") for name in ("fp32", "bf16"))
    assert fp32.keys() == bf16.keys()
    assert all(torch.equal(bf16[name], tensor.to(torch.bfloat16)) for name, tensor in fp32.items())
    assert load_model(tmp_path / "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("by_tensor", [True, False])
def test_a_file_that_lacks_a_weight_is_refused(
    by_tensor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", without=["blk.1.ffn_up"])
    if not by_tensor:
        monkeypatch.setattr(gguf_conversion, "BY_TENSOR", frozenset())
    with pytest.raises(InputError, match=r"must hold every weight, 1 are missing .*layers\.1\.mlp\.up_proj") as caught:
        converted(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_processors_of_transformers_are_those_that_were_judged() -> None:
    of_experts = {"Qwen2MoeTensorProcessor", "GptOssTensorProcessor", "MiniMaxM2TensorProcessor"}
    unused = {"T5TensorProcessor", "Lfm2TensorProcessor"}  # no causal model; read in transformers' other way
    kinds = {kind.__name__ for kind in of_transformers.TENSOR_PROCESSORS.values()} | {"TensorProcessor"}
    assert kinds == gguf_conversion.BY_TENSOR | of_experts | unused
