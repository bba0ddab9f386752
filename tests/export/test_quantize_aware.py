"""What is trained for int4 is what its package holds: the same weights bit for bit, the same logits, the same answers.

Oracle: the super-adapter in transformers and PEFT, whose forward tests/models/test_grid_adapter.py checks.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.adapt.super_adapter import SuperAdapter, load_super_adapter
from shears.adapt.train import train
from shears.checkpoints.package_file import read_package
from shears.checkpoints.packed_layout import dense
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.models.blocks import weight_oi
from shears.models.grid_adapter import GridLinear
from shears.quantization.grid import dequantize_blocks, quantize_blocks
from shears.records.artifacts import SEARCH_SPACE, read_json
from tests import parts
from tests.export.made import half_sparse, logits, stock
from tests.export.packages import all_tensors, package, same_bits, unpack
from tests.training.small_training import SETTINGS

ROWS = [{"prompt": f"{a}+1=", "completion": f" {a + 1}"} for a in range(18)]
INT4 = {**SETTINGS, "max_steps": 3, "warmup_steps": 1, "learning_rate": 0.05, "quantize_aware": "int4"}


def base_of(folder: Path, name: str = "llama") -> Path:
    """A base in fp32 whose embeddings and norms are numbers of bf16, as its package will hold them."""
    base = half_sparse(folder, name)

    def in_bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for key, tensor in tensors.items():
            if tensor.ndim < 2 or "embed" in key or "wte" in key or "wpe" in key:
                tensor.copy_(tensor.bfloat16())
        return tensors

    parts.rewrite(base, in_bf16)
    return base


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Super-adapters on a half-sparse Llama and on GPT-2, whose files hold I x O."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    ways: dict[str, tuple[Path, dict[str, Any]]] = {
        "sparse": (base_of(folder / "base-sparse"), {}),
        "gpt2": (base_of(folder / "base-gpt2", "gpt2"), {}),
    }
    return {
        name: train(base, folder / name, data=str(folder / "rows.jsonl"), **{**INT4, **more})
        for name, (base, more) in ways.items()
    }


def loaded(folder: Path, ranks: str) -> SuperAdapter:
    """A super-adapter on its base with some ranks active."""
    adapter = load_super_adapter(folder, device="cpu")
    adapter.elastic.activate(getattr(adapter.elastic.space, ranks)())
    return adapter


def forward_weights(adapter: SuperAdapter) -> dict[str, Tensor]:
    """The weight that each linear of the blocks multiplies with, seen by the forward itself: the images of unit inputs.

    A product with the identity is exact: each sum has one term.
    """
    found = {}
    modules: dict[str, Any] = dict(adapter.model.get_base_model().named_modules())
    for name, module in modules.items():
        is_linear = isinstance(module, GridLinear) or type(module) in (nn.Linear, Conv1D)
        if is_linear and ".lora_" not in name and not name.endswith((".base_layer", "lm_head")):
            linear = module.get_base_layer() if isinstance(module, GridLinear) else module
            with torch.no_grad():
                if linear.bias is not None:
                    linear.bias.zero_()
                found[name] = module(torch.eye(weight_oi(linear).shape[1])).T
    return found


@pytest.mark.parametrize("ranks", ["maximal", "minimal"])
@pytest.mark.parametrize("name", ["sparse", "gpt2"])
def test_a_package_holds_trainings_weights_bit_for_bit(
    name: str, ranks: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    expected = forward_weights(loaded(trained[name], ranks))
    opened = read_package(package(trained[name], tmp_path / "out", sub_adapter=ranks))
    assert opened.packed.keys() == expected.keys()
    for linear, weight in expected.items():
        matrix = opened.packed[linear]
        assert matrix.values_dtype == "int4"
        assert torch.equal(dense(matrix), weight), linear
    assert opened.adapter() == {}
    of_base = all_tensors(Path(read_json(trained[name] / SEARCH_SPACE)["base"]))
    trained_linear = "attn.c_attn" if name == "gpt2" else "up_proj"
    moved = [linear for linear in expected if linear.endswith(trained_linear)]
    for linear in moved:
        weight = of_base[f"{linear}.weight"].T if name == "gpt2" else of_base[f"{linear}.weight"]
        assert not torch.equal(expected[linear], dequantize_blocks(*quantize_blocks(weight.contiguous())))
        assert bool((expected[linear][weight == 0] == 0).all())


def test_merged_is_an_ordinary_model_with_the_grids_numbers(trained: dict[str, Path], tmp_path: Path) -> None:
    expected = logits(loaded(trained["sparse"], "maximal").model)
    for form in ("merged", "merged-sparse"):
        merged = export_adapter(trained["sparse"], tmp_path / form, format=form, sub_adapter="maximal")
        assert torch.equal(logits(stock(merged)), expected)
        assert read_json(merged / "merged.json")["quantize_aware"] == "int4"
    back = unpack(package(trained["sparse"], tmp_path / "package", sub_adapter="maximal"), tmp_path / "back")
    merged_in_bf16 = {name: tensor.bfloat16() for name, tensor in all_tensors(tmp_path / "merged").items()}
    assert same_bits(merged_in_bf16, all_tensors(back))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "package", "dtype": "int8"}, "dtype or calibration would round again"),
        ({"format": "peft"}, "was trained with quantize_aware, .* got format peft; use package, or merged"),
        ({"format": "padded"}, "was trained with quantize_aware, .* got format padded; use package"),
    ],
)
def test_what_would_not_be_exact_is_refused(
    config: dict[str, Any], message: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        export_adapter(trained["sparse"], tmp_path / "out", **config)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
