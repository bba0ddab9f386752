"""Packages of unusual sources, their sizes, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shears.checkpoints.inspection import inspect
from shears.checkpoints.packed.file import read_package
from shears.checkpoints.packed.index import Index
from shears.checkpoints.tensor_files import TensorFiles
from shears.errors import InputError
from shears.export.package import unpack, write_shards
from shears.export.packing import Packing
from shears.export.stage import export_adapter
from shears.models.load import load_with_adapter
from shears.quantization.grid import dequantize_blocks, quantize_blocks
from shears.records.artifacts import MERGED, PACKAGE, read_json, read_record
from tests import parts
from tests.export.made import activated, half_sparse, logits, stock, super_adapter
from tests.export.packages import all_tensors, package, same_bits

BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("name", "embeddings"), [("llama", "int8"), ("llama_untied", "int8"), ("llama_untied", "int4")]
)
def test_embeddings_and_head_may_be_quantized(name: str, embeddings: str, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base", name)
    out = package(base, tmp_path / "out", embeddings=embeddings)
    opened = read_package(out)
    quantized = {entry_name for entry_name, entry in opened.index.dense.items() if entry.quantized == embeddings}
    if embeddings == "int4":
        for entry_name in quantized:
            weight = TensorFiles(base).load(entry_name)
            assert torch.equal(opened.dense(entry_name), dequantize_blocks(*quantize_blocks(weight)))
    assert quantized == {"model.embed_tokens.weight"} | ({"lm_head.weight"} if name == "llama_untied" else set())
    tolerance = {"int8": 0.05, "int4": 0.8}[embeddings]  # 4 bits are 16 times as coarse
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), logits(stock(base)), rtol=0.05, atol=tolerance)


def test_equal_embeddings_and_heads_are_stored_once(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    parts.rewrite(base, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    out = package(base, tmp_path / "out")
    index: Index = read_package(out).index
    assert len(index.tied) == 1
    assert same_bits(all_tensors(unpack(out, tmp_path / "back") / "model"), all_tensors(base))
    assert inspect(out)["parameters"] == stock(base).num_parameters()
    small = read_package(package(base, tmp_path / "small", embeddings="int4"))
    assert list(small.index.tied) == list(index.tied)
    assert [name for name in small.tensors if name.endswith(".zeros")] == ["dense.lm_head.weight.zeros"]


def test_a_masked_adapter_is_merged_into_its_package(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    adapter = super_adapter(tmp_path / "super", base, sparse_adapter=True)
    out = package(adapter, tmp_path / "out", ranks="maximal")
    assert read_package(out).adapter() == {}
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), activated(adapter, "maximal"), rtol=0, atol=1e-5)
    record, merged = (
        read_record(out, PACKAGE),
        export_adapter(adapter, tmp_path / "m", format="merged-sparse", ranks="maximal"),
    )
    expected = read_json(merged / MERGED)
    assert {record[key] == expected[key] for key in ("base_fingerprint", "super_adapter_fingerprint", "ranks")} == {
        True
    }
    assert same_bits(all_tensors(unpack(out, tmp_path / "back") / "model"), all_tensors(merged))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "base", "m", "out", "super"]


def test_the_temporary_merged_model_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed export leaves only the working folder, which the next export empties."""
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base"), sparse_adapter=True)
    seen, write = list[str](), Packing.write

    def watched(self: Packing, *rest: Any) -> str:
        seen.extend(sorted(path.name for path in tmp_path.iterdir()))
        return write(self, *rest)

    monkeypatch.setattr(Packing, "write", watched)
    out = package(adapter, tmp_path / "out")
    assert seen == ["base", "out.partial", "super"]
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_another_tools_adapter_is_packed_on_its_base(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    model = get_peft_model(stock(base), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapter"))
    out = package(tmp_path / "adapter", tmp_path / "out", model=str(base))
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), logits(model.eval()), rtol=0, atol=1e-5)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"adapter_model.safetensors must be a whole file of safetensors, got: .*"):
        package(tmp_path / "adapter", tmp_path / "torn", model=str(base))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 64}, r"q_proj has \d+ outputs and \d+ inputs, .*q_proj.lora_A.weight is \(3, 64\)"),
        ({"num_attention_heads": 8, "num_key_value_heads": 8}, r"q_proj has \d+ outputs .*lora_B.weight is \(64, 3\)"),
        ({"num_hidden_layers": 3}, r"model.layers.2.self_attn.q_proj is not there in .*base; name its base"),
    ],
)
def test_another_models_adapter_is_refused(shape: dict[str, Any], message: str, tmp_path: Path) -> None:
    base, other = half_sparse(tmp_path / "base"), half_sparse(tmp_path / "other", **shape)
    get_peft_model(stock(other), LoraConfig(r=3, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=f"an adapter must fit the model that it is packed with, .*{message}"):
        package(tmp_path / "adapter", tmp_path / "out", model=str(base))
    assert not (tmp_path / "out").exists()


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base"))
    one, other = (package(adapter, tmp_path / name) for name in ("one", "other"))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_negative_zeros_are_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = half_sparse(tmp_path / "base", dtype=BF16)  # its mask was multiplied
    with caplog.at_level(logging.WARNING):
        record = read_record(package(base, tmp_path / "package"), PACKAGE)
    assert "of the weights are -0.0 and take room; add 0.0 to the weights" in caplog.text
    assert 0.2 < record["negative_zeros"] < 0.3
    assert same_bits(all_tensors(unpack(tmp_path / "package", tmp_path / "back") / "model"), all_tensors(base))


def test_an_ordinary_model_meets_the_size_it_is_packed_for(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
    base = half_sparse(tmp_path / "base", dtype=BF16, **shape)
    parts.rewrite(base, lambda tensors: {name: tensor + 0.0 for name, tensor in tensors.items()})  # no -0.0
    ratio = {
        values: read_record(package(base, tmp_path / values, values=values), PACKAGE)["ratio"]
        for values in ("bf16", "int8")
    }
    assert (ratio["bf16"]["linears"] <= 0.60, ratio["int8"]["linears"] <= 0.36) == (True, True)
    data = inspect(tmp_path / "bf16")
    assert (data["kind"], data["values"], data["size_of_dense_linears"]) == (
        "package",
        "bf16",
        ratio["bf16"]["linears"],
    )
    assert data["size_of_dense_model"] == pytest.approx(
        data["bytes_model"] / (tmp_path / "base" / "model.safetensors").stat().st_size, abs=0.01
    )
    assert data["sparsity"] == pytest.approx(inspect(base)["sparsity"])
    assert data["nonzeros"] == inspect(base)["nonzeros"]


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((10,), float(number)) for number in range(7)}
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_shards(tmp_path, specs, tensors.items(), size=100)
    files = TensorFiles(tmp_path)
    assert len(files.files) == 4
    assert all(torch.equal(files.load(name), tensor) for name, tensor in tensors.items())


def test_wrong_sources_are_refused_in_one_line(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    out = package(base, tmp_path / "out")
    adapter = super_adapter(tmp_path / "super", base)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"super_adapter": out}, "got the package"),
        ({"super_adapter": base, "model": str(base)}, "is packed as it is"),
        ({"super_adapter": base, "ranks": "maximal"}, "has its ranks"),
        ({"super_adapter": adapter, "ranks": "none"}, "ranks must be"),
        ({"super_adapter": tmp_path / "nothing"}, "must exist|hub"),
        ({"super_adapter": adapter, "model": str(out)}, "must be the one this was made from"),
    ]
    for words, what in cases:
        source = words.pop("super_adapter")
        with pytest.raises(InputError, match=what) as caught:
            package(source, tmp_path / "no", **words)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "no").exists()
        assert not (tmp_path / "no.partial").exists()
    with pytest.raises(InputError, match="must be a package"):
        unpack(base, tmp_path / "no")
    parts.rewrite(base, lambda tensors: {name: tensor / 0.0 for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="finite"):
        export_adapter(base, tmp_path / "no", format="package", values="int8")


def test_a_package_whose_bytes_changed_is_refused(tmp_path: Path) -> None:
    out = package(half_sparse(tmp_path / "base"), tmp_path / "out")
    data = bytearray((out / "package.safetensors").read_bytes())
    data[-100] ^= 1
    (out / "package.safetensors").write_bytes(data)
    for read in (lambda: unpack(out, tmp_path / "no"), lambda: load_with_adapter(out), lambda: inspect(out)):
        with pytest.raises(InputError):
            read()
