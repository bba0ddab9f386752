"""A head that a GGUF file holds beside equal embeddings is found, counted once, and left out of the folder."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file

from shears import sparsify
from shears.checkpoints import gguf_conversion
from shears.checkpoints.gguf_file import read_gguf
from shears.checkpoints.gguf_heads import EMBEDDINGS, HEAD, TOKEN_TYPES, bits, find_twins
from shears.checkpoints.inspection import inspect
from shears.config import Recipe, SparsifyConfig
from shears.errors import InputError
from shears.models.fetching import UNTIED, convert_gguf
from shears.models.load import load_model
from shears.models.ref import checked_base, resolve, resolve_with
from shears.records.artifacts import weights_fingerprint
from shears.runs.baselines import baseline_model, dense_model
from shears.runs.shapes import shape_of
from tests.models.gguf_files import write_gguf

PAIRS = [(Kind.Q5_0, Kind.Q8_0), (Kind.Q8_0, Kind.Q4_0), (Kind.F16, Kind.Q8_0), (Kind.F32, Kind.F32),
         (Kind.BF16, Kind.F16)]  # fmt: skip


def stored(file: Path) -> dict[str, np.ndarray]:
    """Return head and embeddings as the gguf package dequantizes them."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors if tensor.name in (HEAD, EMBEDDINGS)}
    return {name: dequantize(tensor.data, tensor.tensor_type) for name, tensor in tensors.items()}


def twice(folder: Path, kind: Kind = Kind.Q5_0, head: Kind = Kind.Q8_0) -> Path:
    return write_gguf(folder / "twice.gguf", architecture="qwen2", kind=kind, head=head)


@pytest.mark.parametrize(("kind", "head"), PAIRS)
def test_two_roundings_of_one_matrix_are_twins_and_the_more_exact_one_is_kept(
    kind: Kind, head: Kind, tmp_path: Path
) -> None:
    file = twice(tmp_path, kind, head)
    twins = find_twins(read_gguf(file))
    assert twins is not None
    assert bits(twins.kept.kind) == max(bits(kind), bits(head))
    assert {twins.kept.name, twins.left_out.name} == {HEAD, EMBEDDINGS}
    both = stored(file)
    expected = np.linalg.norm(both[HEAD] - both[EMBEDDINGS]) / np.linalg.norm(both[HEAD])
    assert twins.difference == pytest.approx(expected, abs=0.01)  # one row in 64 stands for all


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.F32])
def test_a_head_of_its_own_is_no_twin(kind: Kind, tmp_path: Path) -> None:
    assert find_twins(read_gguf(write_gguf(tmp_path / "own.gguf", kind=kind))) is None
    trained = write_gguf(tmp_path / "trained.gguf", kind=kind, head=Kind.Q8_0, noise=0.3)
    assert find_twins(read_gguf(trained)) is None
    assert find_twins(read_gguf(write_gguf(tmp_path / "tied.gguf", without=["output"]))) is None


def test_one_trained_row_of_a_control_token_makes_a_head_its_own(tmp_path: Path) -> None:
    noise = np.zeros((258, 1))
    noise[5] = 0.5
    file = read_gguf(write_gguf(tmp_path / "row.gguf", kind=Kind.Q8_0, head=Kind.Q8_0, noise=noise))
    types = [1] * 258
    assert find_twins(replace(file, metadata={**file.metadata, TOKEN_TYPES: types})) is not None
    types[5] = 3
    assert find_twins(replace(file, metadata={**file.metadata, TOKEN_TYPES: types})) is None


@pytest.mark.parametrize(("kind", "head"), [(Kind.Q5_0, Kind.Q8_0), (Kind.Q8_0, Kind.Q5_0)])
@pytest.mark.parametrize("by_tensor", [True, False])
def test_the_folder_holds_the_more_exact_one_alone(
    kind: Kind,
    head: Kind,
    by_tensor: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not by_tensor:
        monkeypatch.setattr(gguf_conversion, "BY_TENSOR", frozenset())
    file = twice(tmp_path, kind, head)
    with caplog.at_level(logging.INFO):
        folder = convert_gguf(file)
    assert "embeddings" in caplog.text
    assert f"twice.gguf{UNTIED} keeps both" in caplog.text
    state = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in state
    exact = stored(file)[HEAD if head == Kind.Q8_0 else EMBEDDINGS]
    assert torch.equal(state["model.embed_tokens.weight"], torch.from_numpy(exact))
    model = load_model(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_name_keeps_both_and_plans_and_inspect_count_what_is_kept(tmp_path: Path) -> None:
    file = twice(tmp_path)
    both = resolve(f"{file}{UNTIED}")
    once = resolve(file)
    assert both.recorded_name == f"{file}{UNTIED}"
    state = load_file(both.folder / "model.safetensors")
    for name, of_file in (("lm_head.weight", HEAD), ("model.embed_tokens.weight", EMBEDDINGS)):
        assert torch.equal(state[name], torch.from_numpy(stored(file)[of_file]))
    sizes = {name: load_model(folder.folder).num_parameters() for name, folder in (("both", both), ("once", once))}
    assert sizes["both"] == sizes["once"] + stored(file)[HEAD].size
    for name, size in ((str(file), sizes["once"]), (f"{file}{UNTIED}", sizes["both"])):
        shape = shape_of(name)
        assert shape is not None
        assert shape.parameters == size
    facts = inspect(file)
    assert facts["parameters"] == sizes["once"]
    assert "head Q8_0 and embeddings Q5_0 are one matrix" in facts["held_twice"]
    with pytest.raises(InputError, match=r"there is no .*gone\.gguf:untied"):
        resolve(tmp_path / f"gone.gguf{UNTIED}")


def test_what_was_made_when_both_were_kept_finds_its_base_again(tmp_path: Path) -> None:
    """A conversion of earlier versions has the name and the bytes of the one that keeps both."""
    file = twice(tmp_path)
    before = convert_gguf(file, untied=True)
    assert before.name == convert_gguf(file).name.removesuffix("-tied")
    old = weights_fingerprint(before)
    base = checked_base(tmp_path / "adapter", {"base": str(file), "base_fingerprint": old})
    assert (base.folder, base.recorded_name) == (before, f"{file}{UNTIED}")
    assert checked_base(tmp_path / "adapter", {"base": base.recorded_name, "base_fingerprint": old}) == base
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "search_space.json").write_text(json.dumps({"base_fingerprint": old}))
    assert resolve_with(file, tmp_path / "adapter", "auto").folder == before
    with pytest.raises(InputError, match="must be the one this was made from"):
        checked_base(tmp_path / "adapter", {"base": str(file), "base_fingerprint": "0" * 64})


@pytest.mark.parametrize("name", ["twice.gguf", f"twice.gguf{UNTIED}"])
def test_a_run_continues_with_the_conversion_that_it_pruned(name: str, tmp_path: Path) -> None:
    twice(tmp_path)
    shared: dict[str, Any] = {"method": "magnitude", "sparsity": 0.5}
    sparsify(tmp_path / name, tmp_path / "run" / "sparse", **shared)
    recipe = Recipe(model=str(tmp_path / "twice.gguf"), sparsify=SparsifyConfig(**shared))
    dense = dense_model(str(recipe.model), "auto", tmp_path / "run")
    assert dense.folder == resolve(tmp_path / name).folder
    assert baseline_model(recipe, "dense-lora", tmp_path / "run") == str(tmp_path / name)
    record = json.loads((tmp_path / "run" / "sparse" / "sparsity.json").read_text())
    assert record["base_fingerprint"] == dense.fingerprint
