"""A package is the sparse model and its adapter in one file, and comes back bit for bit."""

import logging
from pathlib import Path

import pytest
import torch

from shears.checkpoints.packed.file import read_package
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.export.package import unpack
from shears.export.stage import export_adapter
from shears.models.load import load_with_adapter
from shears.records.artifacts import PACKAGE, README, SUB_ADAPTER, read_json, read_record
from shears.records.trained_form import trained_template
from tests import parts
from tests.export.made import activated, half_sparse, logits, mixed_ranks, stock, super_adapter
from tests.export.packages import all_tensors, package, same_bits
from tests.tiny import save_tiny

BF16 = torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "llama_untied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_base_and_sub_adapter_come_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base = half_sparse(tmp_path / "base", name, dtype)
    adapter = super_adapter(tmp_path / "super", base)
    ranks = mixed_ranks(tmp_path / "ranks.json", adapter)
    out = unpack(package(adapter, tmp_path / "package", ranks=str(ranks)), tmp_path / "out")
    assert same_bits(all_tensors(out / "model"), all_tensors(base))
    assert read_json(out / "model" / "config.json") == read_json(base / "config.json")
    exported = export_adapter(adapter, tmp_path / "sub", ranks=str(ranks))
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert (out / "adapter" / names[0]).read_bytes() == (exported / names[0]).read_bytes()
    assert read_json(out / "adapter" / names[1]) == read_json(exported / names[1])
    record, expected = read_record(out / "adapter", SUB_ADAPTER), read_record(exported, SUB_ADAPTER)
    same = (
        "ranks",
        "template",
        "alpha",
        "max_rank",
        "super_adapter_fingerprint",
        "ranks_fingerprint",
        "sparse_adapter",
    )
    assert {key: record[key] for key in same} == {key: expected[key] for key in same}
    assert "# LoRA adapter for model\n" in (out / "adapter" / README).read_text()
    model, _ = load_with_adapter(out / "model", out / "adapter")  # the record names this very model as the base
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model), activated(adapter, ranks), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_package_evaluates_as_base_and_adapter_do(tmp_path: Path, name: str) -> None:
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base", name))
    out = package(adapter, tmp_path / "package", ranks="maximal")
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), activated(adapter, "maximal"), rtol=0, atol=1e-5)
    sub = export_adapter(adapter, tmp_path / "sub", ranks="maximal")
    of_sub = package(sub, tmp_path / "of_sub")
    torch.testing.assert_close(logits(load_with_adapter(of_sub)[0]), activated(adapter, "maximal"), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="comes with its adapter"):
        load_with_adapter(out, sub)
    assert trained_template(out) == "alpaca"


def test_a_model_alone_is_packed_from_all_its_shards(tmp_path: Path) -> None:
    for name in ("llama", "phi3", "mixtral", "gpt_oss", "mamba", "falcon_h1"):
        before = parts.save(tmp_path / name, name, BF16)
        for weight in [tensor for tensor in before.state_dict().values() if tensor.ndim >= 2]:
            weight.view(-1)[::2] = 0.0
        before.save_pretrained(tmp_path / name, max_shard_size="40KB")
        made = parts.tiny_tokenizer_beside(tmp_path / name)
        out = package(made, tmp_path / f"{name}_package")
        assert len(TensorFiles(made).files) > 1
        back = unpack(out, tmp_path / f"{name}_out") / "model"
        assert same_bits(all_tensors(back), all_tensors(made))
        assert not (back.parent / "adapter").exists()
        assert torch.equal(logits(stock(back)), logits(stock(made)))
        assert torch.equal(logits(load_with_adapter(out)[0]), logits(stock(made)))
        assert read_record(out, PACKAGE)["num_linears"] > 0


def test_only_plain_matrices_of_blocks_are_packed_and_routers_stay(tmp_path: Path) -> None:
    parts.save(tmp_path / "base", "mixtral", BF16)
    index = read_package(package(parts.tiny_tokenizer_beside(tmp_path / "base"), tmp_path / "out", values="int8")).index
    kinds = {name.rsplit(".", 1)[-1] for name in index.packed}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}
    assert {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
    } < index.dense.keys()


@pytest.mark.parametrize("name", ["granitemoe", "jetmoe"])
def test_routers_with_a_linear_below_them_stay_too(tmp_path: Path, name: str) -> None:
    save_tiny(tmp_path / "base", name)
    index = read_package(package(tmp_path / "base", tmp_path / "out", values="int8")).index
    assert index.packed
    assert not [tensor for tensor in index.packed if "router" in tensor]
    assert [tensor for tensor in index.dense if "router" in tensor]


def test_a_dense_model_gains_nothing_and_stays_dense(tmp_path: Path) -> None:
    base = parts.tiny_tokenizer_beside(_saved(tmp_path / "base"))
    out = package(base, tmp_path / "out")
    assert read_package(out).index.packed == {}
    assert same_bits(all_tensors(unpack(out, tmp_path / "back") / "model"), all_tensors(base))


def _saved(folder: Path) -> Path:
    parts.save(folder, "llama")
    return folder


def test_zeros_everywhere_are_packed(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    parts.rewrite(base, lambda tensors: {
        name: torch.zeros_like(tensor) if "proj" in name else tensor for name, tensor in tensors.items()
    })  # fmt: skip
    out = package(base, tmp_path / "out")
    assert all(entry.kept == 0 for entry in read_package(out).index.packed.values())
    assert same_bits(all_tensors(unpack(out, tmp_path / "back") / "model"), all_tensors(base))


@pytest.mark.parametrize(
    ("dtype", "values", "held"),
    [
        (torch.float32, "auto", "bf16"),
        (torch.float32, "fp32", "fp32"),
        (BF16, "auto", "bf16"),
        (torch.float16, "auto", "bf16"),
        (torch.float32, "bf16", "bf16"),
        (BF16, "fp32", "fp32"),
        (BF16, "int8", "int8"),
        (BF16, "int4", "int4"),
    ],
)
def test_values_are_bf16_unless_asked_which_one_line_says(
    dtype: torch.dtype, values: str, held: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = half_sparse(tmp_path / "base", dtype=dtype)
    with caplog.at_level(logging.INFO):
        out = package(base, tmp_path / "out", values=values)
    assert ("values auto: bf16, to which" in caplog.text) == (values == "auto" and dtype != BF16)
    index = read_package(out).index
    assert {entry.values for entry in index.packed.values()} == {held}
    of_model = {"fp32": torch.float32}.get(held, BF16)
    assert {entry.dtype for entry in index.dense.values()} == {"fp32" if of_model == torch.float32 else "bf16"}
    back = all_tensors(unpack(out, tmp_path / "back") / "model")
    assert {tensor.dtype for tensor in back.values()} == {of_model}
    assert load_with_adapter(out)[0].dtype == of_model
    lossless = (dtype, held) in {(torch.float32, "fp32"), (BF16, "bf16"), (BF16, "fp32")}
    assert lossless == (read_record(out, PACKAGE)["rounding"] == 0.0) == ("differ from the model's" not in caplog.text)
    if lossless:
        assert all(torch.equal(tensor, back[name].to(dtype)) for name, tensor in all_tensors(base).items())


@pytest.mark.parametrize(("values", "least", "most"), [("int8", 0.001, 0.01), ("int4", 0.02, 0.15)])
def test_the_rounding_error_is_what_unpacking_shows(values: str, least: float, most: float, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    out = package(base, tmp_path / "out", values=values)
    packed, before = read_package(out), all_tensors(base)
    pairs = [(before[f"{name}.weight"].double(), packed.weight(name).double()) for name in packed.packed]
    error = sum(float((one - other).square().sum()) for one, other in pairs)
    assert read_record(out, PACKAGE)["rounding"] == pytest.approx(
        (error / sum(float(one.square().sum()) for one, _ in pairs)) ** 0.5
    )
    assert least < read_record(out, PACKAGE)["rounding"] < most


def test_unpack_takes_a_path_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(half_sparse(tmp_path / "base", "llama"), tmp_path / "package")
    monkeypatch.setenv("HOME", str(tmp_path))
    out = unpack("~/package", "~/out")
    assert out == tmp_path / "out"
    assert same_bits(all_tensors(out / "model"), all_tensors(tmp_path / "base"))
