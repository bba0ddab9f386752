"""A package is the sparse model and its adapter in one file, and comes back bit for bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from shears.checkpoints.inspection import inspect
from shears.checkpoints.package_file import PACKAGE_FILE, read_package
from shears.checkpoints.packed_layout import dense, pack
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import ExportConfig
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.models.load import load_with_adapter
from shears.quantization.grid import dequantize_blocks, quantize_blocks
from shears.records.artifacts import PACKAGE, SUB_ADAPTER, read_json, read_record
from shears.runs.shapes import shape_of
from tests import parts
from tests.export.made import activated, half_sparse, logits, mixed_ranks, stock, super_adapter
from tests.export.packages import all_tensors, package, same_bits, unpack
from tests.tiny import save_tiny, tiny_model

BF16 = torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_base_and_sub_adapter_come_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base = half_sparse(tmp_path / "base", name, dtype)
    adapter = super_adapter(tmp_path / "super", base)
    ranks = mixed_ranks(tmp_path / "ranks.json", adapter)
    out = unpack(package(adapter, tmp_path / "package", sub_adapter=str(ranks)), tmp_path / "out")
    assert same_bits(all_tensors(out), all_tensors(base))
    assert read_json(out / "config.json") == read_json(base / "config.json")
    exported = export_adapter(adapter, tmp_path / "sub", sub_adapter=str(ranks))
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert (out / "adapter" / names[0]).read_bytes() == (exported / names[0]).read_bytes()
    assert read_json(out / "adapter" / names[1]) == read_json(exported / names[1])
    record = read_record(out / "adapter", SUB_ADAPTER)
    expected = read_record(exported, SUB_ADAPTER)
    for key in ("ranks", "template", "alpha", "max_rank", "super_adapter_fingerprint", "ranks_fingerprint"):
        assert record[key] == expected[key]
    model, _ = load_with_adapter(out, out / "adapter")  # the record names this very model as the base
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model), activated(adapter, ranks), rtol=0, atol=1e-5)
        merged = export_adapter(out / "adapter", tmp_path / "merged", format="merged")  # found by its record
        torch.testing.assert_close(logits(stock(merged)), activated(adapter, ranks), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["phi3", "mixtral", "mamba"])
def test_a_model_alone_is_packed_from_all_its_shards(name: str, tmp_path: Path) -> None:
    before = parts.save(tmp_path / name, name, BF16)
    for weight in [tensor for tensor in before.state_dict().values() if tensor.ndim >= 2]:
        weight.view(-1)[::2] = 0.0
    before.save_pretrained(tmp_path / name, max_shard_size="40KB")
    made = parts.tiny_tokenizer_beside(tmp_path / name)
    out = package(made, tmp_path / "package")
    assert len(TensorFiles(made).files) > 1
    index = read_package(out).index
    assert index.packed
    assert not [linear for linear in index.packed if "router" in linear or linear.endswith(".gate")]
    back = unpack(out, tmp_path / "out")
    assert same_bits(all_tensors(back), all_tensors(made))
    assert not (back / "adapter").exists()
    assert torch.equal(logits(stock(back)), logits(stock(made)))
    assert torch.equal(logits(load_with_adapter(out)[0]), logits(stock(made)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_int4_weight_is_that_of_the_layout_and_zeros_stay_zeros(name: str, tmp_path: Path) -> None:
    """GPT-2's weights lie transposed in its files; their groups and blocks run along the inputs all the same."""
    before = all_tensors(half_sparse(tmp_path / "base", name))
    out = package(tmp_path / "base", tmp_path / "out", dtype="int4")
    opened = read_package(out)
    back = all_tensors(unpack(out, tmp_path / "back"))
    assert opened.packed
    for linear in opened.packed:
        weight = before[f"{linear}.weight"]
        transposed = opened.index.packed[linear].transposed
        assert transposed == (name == "gpt2")
        expected = dense(pack((weight.T if transposed else weight).contiguous(), "int4"))
        restored = back[f"{linear}.weight"]
        assert torch.equal(restored, (expected.T if transposed else expected).bfloat16())
        assert bool((restored[weight == 0] == 0).all())
    shown = inspect(out)
    assert shown["sparsity"] == inspect(tmp_path / "back")["sparsity"] > 0.45


@pytest.mark.parametrize("values", ["int4", "int8", "bf16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_size_of_a_dense_package_is_predicted_exactly(name: str, values: str, tmp_path: Path) -> None:
    parts.save(tmp_path / "base", name, BF16)
    base = parts.tiny_tokenizer_beside(tmp_path / "base")
    out = package(base, tmp_path / "out", dtype=values)
    settings = ExportConfig.model_validate({"format": "package", "dtype": values})
    shape = shape_of(str(base))
    assert shape is not None
    assert shape.package_bytes(settings, 0.0) == (out / PACKAGE_FILE).stat().st_size
    packed = read_package(out).packed
    assert bool(packed) == (values != "bf16")  # a dense model in bf16 gains nothing
    assert read_record(out, PACKAGE)["bytes"]["linears"] == sum(matrix.num_bytes for matrix in packed.values())


@pytest.mark.parametrize("embeddings", ["int8", "int4"])
def test_embeddings_and_head_may_be_quantized(embeddings: str, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base", "llama_untied")
    out = package(base, tmp_path / "out", embedding_dtype=embeddings)
    opened = read_package(out)
    quantized = {name for name, entry in opened.index.dense.items() if entry.quantized == embeddings}
    assert quantized == {"model.embed_tokens.weight", "lm_head.weight"}
    for name in quantized if embeddings == "int4" else ():
        assert torch.equal(opened.dense(name), dequantize_blocks(*quantize_blocks(TensorFiles(base).load(name))))
    tolerance = {"int8": 0.05, "int4": 0.8}[embeddings]  # 4 bits are 16 times as coarse
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), logits(stock(base)), rtol=0.05, atol=tolerance)


def test_a_masked_adapter_is_merged_into_its_package(tmp_path: Path) -> None:
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base"), sparse_adapter=True)
    out = package(adapter, tmp_path / "out", sub_adapter="maximal")
    assert read_package(out).adapter() == {}
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), activated(adapter, "maximal"), rtol=0, atol=1e-5)
    merged = export_adapter(adapter, tmp_path / "m", format="merged-sparse", sub_adapter="maximal")
    record = read_record(out, PACKAGE)
    for key in ("base_fingerprint", "super_adapter_fingerprint", "ranks"):
        assert record[key] == read_json(merged / "merged.json")[key]
    assert same_bits(all_tensors(unpack(out, tmp_path / "back")), all_tensors(merged))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "base", "m", "out", "super"]


def adapter_of(base: Path, folder: Path, config: Any, name: str = "llama") -> Path:
    """Save another tool's adapter of random weights on a tiny model; return its folder."""
    torch.manual_seed(0)
    model: Any = tiny_model(name)
    model.name_or_path = str(base)
    model = get_peft_model(model, copy.deepcopy(config))
    for part in (part for part in model.parameters() if part.requires_grad):
        part.data.add_(torch.randn_like(part), alpha=0.3)
    model.save_pretrained(folder)
    return folder


OTHERS = {
    "lora": ("llama", LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    "experts": ("mixtral", LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"], task_type="CAUSAL_LM"
    )),
    "lokr": ("llama", LoKrConfig(r=6, decompose_factor=2, target_modules=["q_proj"], task_type="CAUSAL_LM")),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_tools_adapter_is_packed_on_its_base(kind: str, tmp_path: Path) -> None:
    name, config = OTHERS[kind]
    base = save_tiny(tmp_path / "base", name)
    adapter = adapter_of(base, tmp_path / "adapter", config, name)
    out = export_adapter(adapter, tmp_path / "out", format="package", dtype="fp32")
    expected = logits(PeftModel.from_pretrained(stock(base), adapter).eval())
    torch.testing.assert_close(logits(load_with_adapter(out)[0]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("odd", [float("nan"), 3e38])
@pytest.mark.parametrize("setting", ["dtype", "embedding_dtype"])
def test_what_int4_cannot_hold_is_refused_before_a_package_exists(setting: str, odd: float, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    changed = "q_proj" if setting == "dtype" else "embed_tokens"

    def with_odd(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        next(tensor for name, tensor in tensors.items() if changed in name)[0, 0] = odd
        return tensors

    parts.rewrite(base, with_odd)
    with pytest.raises(InputError, match="to be quantized"):
        package(base, tmp_path / "out", **{setting: "int4"})
    assert not (tmp_path / "out" / PACKAGE_FILE).exists()


def test_wrong_sources_are_refused_in_one_line(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    out = package(base, tmp_path / "out")
    adapter = super_adapter(tmp_path / "super", base)
    torn = adapter_of(base, tmp_path / "torn", OTHERS["lora"][1]) / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (out, {}, "got the package"),
        (base, {"model": str(base)}, "needs no option model"),
        (base, {"sub_adapter": "maximal"}, "has fixed ranks"),
        (adapter, {"sub_adapter": "none"}, "sub_adapter must be"),
        (tmp_path / "nothing", {}, "there is no"),
        (adapter, {"model": str(out)}, "must be the one this was made from"),
        (torn.parent, {"model": str(base)}, "torn cannot be read"),
    ]
    for source, words, what in cases:
        with pytest.raises(InputError, match=what) as caught:
            package(source, tmp_path / "no", **words)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("no*"))
    with pytest.raises(InputError, match="must be a package"):
        unpack(base, tmp_path / "no")
