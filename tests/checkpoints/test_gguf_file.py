"""The header of a GGUF file tells what the model is; a damaged file is an error of one line."""

import json
import random
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from transformers import modeling_gguf_pytorch_utils as of_transformers
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

from shears.checkpoints.gguf_file import GGUF_ARCHITECTURES, read_gguf
from shears.checkpoints.inspection import inspect
from shears.cli import main
from shears.errors import InputError
from tests.models.gguf_files import write_gguf


def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    expected = {
        tensor.name: (tensor.data_offset, tensor.n_bytes, int(tensor.tensor_type), tuple(tensor.shape[::-1].tolist()))
        for tensor in GGUFReader(file).tensors
    }
    header = read_gguf(file)
    assert {
        tensor.name: (tensor.offset, tensor.num_bytes, int(tensor.kind), tensor.shape) for tensor in header.tensors
    } == expected
    assert header.architecture == "llama"
    assert header.metadata["tokenizer.ggml.merges"] == 1


def test_a_file_that_is_cut_off_or_scrambled_is_an_error_of_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "damaged.gguf"
    draw = random.Random(0)
    for length in [*range(0, 200, 7), *(draw.randrange(len(whole)) for _ in range(30)), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match="must be a GGUF file, but") as caught:
            read_gguf(file)
        assert "\n" not in str(caught.value)
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(whole) // 20)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        with suppress(InputError):  # a flipped letter does no harm
            read_gguf(file)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 60, b"PK" * 50])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(InputError, match="must be a GGUF file"):
        inspect(tmp_path / "other.gguf")


def test_inspect_counts_types_and_says_whether_the_file_loads(tmp_path: Path) -> None:
    data = inspect(write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0, chat_template="x"))
    types = data["types"]
    assert set(types) == {"Q8_0", "F32"}
    assert sum(counts["parameters"] for counts in types.values()) == data["parameters"]
    assert sum(counts["tensors"] for counts in types.values()) == data["tensors"] == 21
    assert types["Q8_0"]["bytes"] * 32 == types["Q8_0"]["parameters"] * 34
    assert (data["architecture"], data["tokenizer"], data["chat_template"], data["loads"]) == (
        "llama",
        "gpt2",
        True,
        True,
    )
    other = inspect(write_gguf(tmp_path / "other.gguf", architecture="mamba9"))
    assert not other["loads"]
    assert other["why"] == "transformers reads no causal language model of the architecture mamba9"


def test_the_verb_prints_text_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    printed = []
    for option in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["shears", "inspect", str(file), *option])
        with pytest.raises(SystemExit):
            main()
        printed.append(capfd.readouterr().out)
    assert "F32: 21 tensors, " in printed[0]
    assert json.loads(printed[1]) == inspect(file)


def test_the_architectures_are_those_of_transformers() -> None:
    def plain(names: object) -> set[str]:
        return {re.sub("[-_]", "", str(name)) for name in names}  # type: ignore[attr-defined]  # any names

    no_model = {"general", "tokenizer", "t5", "umt5"}  # keys beside the architectures; no causal language models
    known = plain([*of_transformers.GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS])
    assert plain(GGUF_ARCHITECTURES) == known - no_model
