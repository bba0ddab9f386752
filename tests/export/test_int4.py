"""Packages of int4 values: zeros stay exact, the rest is off by half a step, and every reader takes them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shears.checkpoints.inspection import inspect
from shears.checkpoints.packed.file import PACKAGE_FILE, read_package
from shears.checkpoints.packed.layout import dense, pack
from shears.config import ExportConfig
from shears.errors import InputError
from shears.export.package import unpack
from shears.models.load import load_with_adapter
from shears.records.artifacts import PACKAGE, README, read_record
from shears.runs.shapes import shape_of
from tests import parts
from tests.export.made import half_sparse, logits, stock
from tests.export.packages import all_tensors, package, same_bits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_weight_is_that_of_the_layout_and_zeros_stay_zeros(name: str, tmp_path: Path) -> None:
    """GPT-2's weights lie transposed in its files; their groups and blocks run along the inputs all the same."""
    before = all_tensors(half_sparse(tmp_path / "base", name))
    out = package(tmp_path / "base", tmp_path / "out", values="int4")
    opened = read_package(out)
    back = all_tensors(unpack(out, tmp_path / "back") / "model")
    assert back.keys() == before.keys()
    assert opened.packed
    for linear in opened.packed:
        weight = before[f"{linear}.weight"]
        transposed = opened.index.packed[linear].transposed
        assert transposed == (name == "gpt2")
        expected = dense(pack((weight.T if transposed else weight).contiguous(), "int4"))
        restored = back[f"{linear}.weight"]
        assert torch.equal(restored, (expected.T if transposed else expected).bfloat16())
        assert bool((restored[weight == 0] == 0).all())


def test_an_int4_package_is_its_unpacked_model_to_every_reader(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    out = package(base, tmp_path / "out", values="int4", embeddings="int4")
    back = unpack(out, tmp_path / "back") / "model"
    shown, restored = inspect(out), inspect(back)
    assert shown["values"] == "int4"
    assert shown["nonzeros"] == restored["nonzeros"] < inspect(base)["nonzeros"]  # some kept weights round to 0
    assert shown["sparsity"] == restored["sparsity"] > 0.45
    assert "the nearest numbers to the package's int4" in (back / README).read_text()
    assert read_record(out, PACKAGE)["values"] == "int4"
    assert torch.equal(logits(load_with_adapter(out)[0]), logits(stock(back)))


def test_dense_weights_are_packed_in_int4_because_that_is_smaller(tmp_path: Path) -> None:
    parts.save(tmp_path / "base", "llama", torch.bfloat16)
    base = parts.tiny_tokenizer_beside(tmp_path / "base")
    out = package(base, tmp_path / "out", values="int4")
    opened = read_package(out)
    assert {linear.rsplit(".", 1)[-1] for linear in opened.packed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for linear, matrix in opened.packed.items():
        assert matrix.num_bytes < all_tensors(base)[f"{linear}.weight"].nbytes
    record = read_record(out, PACKAGE)
    assert record["bytes"]["linears"] == sum(matrix.num_bytes for matrix in opened.packed.values())


def test_negative_zeros_are_not_named_where_zeros_spare_no_room(tmp_path: Path) -> None:
    parts.save(tmp_path / "base", "llama", torch.bfloat16, shard="1GB")
    base = parts.tiny_tokenizer_beside(tmp_path / "base")

    def with_negative_zeros(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensor[:3] = -0.0
        return tensors

    parts.rewrite(base, with_negative_zeros)
    figures = [read_record(package(base, tmp_path / v, values=v), PACKAGE)["negative_zeros"] for v in ("int4", "int8")]
    assert figures[0] == 0  # at most 3 of 16 rows, less than a quarter
    assert figures[1] > 0.02  # k_proj and v_proj: more than an eighth
    assert read_package(tmp_path / "int4").index.version == read_package(tmp_path / "int8").index.version == "3"


@pytest.mark.parametrize("values", ["int4", "int8", "bf16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_size_of_a_dense_package_is_predicted_exactly(name: str, values: str, tmp_path: Path) -> None:
    parts.save(tmp_path / "base", name, torch.bfloat16)
    base = parts.tiny_tokenizer_beside(tmp_path / "base")
    out = package(base, tmp_path / "out", values=values)
    settings = ExportConfig.model_validate({"format": "package", "values": values})
    shape = shape_of(str(base))
    assert shape is not None
    assert shape.package_bytes(settings, 0.0) == (out / PACKAGE_FILE).stat().st_size


@pytest.mark.parametrize("odd", [float("nan"), float("-inf"), 3e38])
@pytest.mark.parametrize("setting", ["values", "embeddings"])
def test_what_int4_cannot_hold_is_refused_before_a_package_exists(setting: str, odd: float, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    changed = "q_proj" if setting == "values" else "embed_tokens"

    def with_odd(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        next(tensor for name, tensor in tensors.items() if changed in name)[0, 0] = odd
        return tensors

    parts.rewrite(base, with_odd)
    with pytest.raises(InputError, match="to be quantized") as caught:
        package(base, tmp_path / "out", **{setting: "int4"})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / PACKAGE_FILE).exists()


def test_a_package_of_other_values_beside_int4_embeddings_is_exact(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base", dtype=torch.bfloat16)
    out = package(base, tmp_path / "out", embeddings="int4")
    assert {entry.values for entry in read_package(out).index.packed.values()} == {"bf16"}
    before = all_tensors(base)
    before.pop("model.embed_tokens.weight")
    back = all_tensors(unpack(out, tmp_path / "back") / "model")
    back.pop("model.embed_tokens.weight")
    assert same_bits(before, back)
