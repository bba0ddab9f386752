"""A saved model with other zeros than its record says is caught, wherever the files keep the weight."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.errors import InputError
from shears.records.artifacts import SPARSITY
from shears.sparsity.rewrite import LinearSparsity, check_saved
from shears.sparsity.stage import sparsify
from tests.tiny import tiny_model

FILE, BLOCK = "model.safetensors", "model.layers.1"
# (architecture, tensor in its file, the linear that it belongs to)
PLACES = {
    "linear": ("llama", f"{BLOCK}.mlp.up_proj.weight", f"{BLOCK}.mlp.up_proj"),
    "transposed": ("gpt2", "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn"),
    "expert": ("mixtral", f"{BLOCK}.block_sparse_moe.experts.3.w1.weight", f"{BLOCK}.mlp.experts.gate_up_proj"),
    "expert's second": ("olmoe", f"{BLOCK}.mlp.experts.2.down_proj.weight", f"{BLOCK}.mlp.experts.down_proj"),
    "stack": ("gpt_oss", f"{BLOCK}.mlp.experts.down_proj", f"{BLOCK}.mlp.experts.down_proj"),
    "stack of a linear": ("jetmoe", f"{BLOCK}.mlp.input_linear.weight", f"{BLOCK}.mlp.input_linear.weight"),
    "shared": ("zamba", f"{BLOCK}.shared_transf.self_attn.q_proj.weight", f"{BLOCK}.shared_transf.self_attn.q_proj"),
}


def pruned(folder: Path, name: str, start: str = "") -> tuple[Path, dict[str, LinearSparsity]]:
    """Prune a model by magnitude; `start` is taken off the names in its file before."""
    tiny_model(name).save_pretrained(folder / "base")
    if start:
        tensors = load_file(folder / "base" / FILE)
        renamed = {key.removeprefix(start): tensor for key, tensor in tensors.items()}
        save_file(renamed, folder / "base" / FILE, metadata={"format": "pt"})
    output = sparsify(folder / "base", folder / "sparse", method="magnitude")
    record = json.loads((output / SPARSITY).read_text())
    return output, {
        name: LinearSparsity(tuple(linear["shape"]), linear["zeros"]) for name, linear in record["linears"].items()
    }


def change(folder: Path, tensor: str, from_zero: bool) -> None:
    """Fill one zero of a tensor in the file, or zero one other number."""
    tensors: dict[str, Tensor] = load_file(folder / FILE)
    flat = tensors[tensor].flatten()
    flat[(flat == 0).nonzero()[-1] if from_zero else flat.nonzero()[-1]] = 0.5 if from_zero else 0.0
    tensors[tensor] = flat.view(tensors[tensor].shape)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("place", "from_zero"), [*((place, True) for place in PLACES), ("linear", False), ("expert", False)]
)
def test_one_changed_number_is_caught_and_its_linear_named(place: str, from_zero: bool, tmp_path: Path) -> None:
    name, tensor, linear = PLACES[place]
    folder, linears = pruned(tmp_path, name)
    check_saved(folder, linears)
    change(folder, tensor, from_zero)
    zeros = linears[linear].zeros
    got = zeros - 1 if from_zero else zeros + 1
    with pytest.raises(InputError, match=rf"{linear} must have {zeros} zeros in .*, got {got}; make it again"):
        check_saved(folder, linears)


def test_names_without_their_start_are_found(tmp_path: Path) -> None:
    folder, linears = pruned(tmp_path, "gpt2", start="transformer.")
    assert "h.1.mlp.c_fc.weight" in load_file(folder / FILE)
    check_saved(folder, linears)
    change(folder, "h.1.mlp.c_fc.weight", from_zero=True)
    with pytest.raises(InputError, match=r"transformer\.h\.1\.mlp\.c_fc must have 768 zeros in .*, got 767"):
        check_saved(folder, linears)


def test_weights_that_are_no_longer_there_are_an_error(tmp_path: Path) -> None:
    folder, linears = pruned(tmp_path, "llama")
    tensors = load_file(folder / FILE)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.up_proj"):
        check_saved(folder, linears)


def test_negative_zeros_are_zeros(tmp_path: Path) -> None:
    folder, linears = pruned(tmp_path, "llama")
    tensors = load_file(folder / FILE)
    negated = {name: torch.where(tensor == 0, -0.0, tensor) for name, tensor in tensors.items()}
    save_file(negated, folder / FILE, metadata={"format": "pt"})
    check_saved(folder, linears)
