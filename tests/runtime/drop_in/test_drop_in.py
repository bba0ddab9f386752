"""Any model computes the same with packed linears, with and without the C++ kernels, and becomes itself again."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from shears.checkpoints.packed.layout import NumberFormat, dense, pack
from shears.models.sparse_adapter import make_sparse
from shears.runtime import kernels_available
from shears.runtime.drop_in import swap
from shears.runtime.drop_in.linears import DenseLinear, PackedLinear
from shears.runtime.drop_in.swap import densify_linears, sparsify_linears
from tests.checkpoints.packed.test_layout import bits, sparse_weight
from tests.export.made import IDS, half_sparse, logits
from tests.runtime.drop_in.dropped_in import near, sparse_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon", "qwen2", "zamba2", "mamba"])
def test_logits_stay_and_the_model_becomes_itself_again(name: str, path: str) -> None:
    model = sparse_model(name)
    before, state = logits(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    swapped = sparsify_linears(model)
    assert swapped or name == "falcon"  # its linears are a class of their own
    torch.testing.assert_close(logits(model), before, **near(path))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    densify_linears(model)
    assert [type(module) for module in model.modules()] == kinds
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(bits(tensor), bits(state[key])) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generate_works_unchanged_and_biases_are_kept(dtype: torch.dtype, path: str) -> None:
    model: Any = sparse_model("llama", dtype, biases=True)
    ask = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 256}
    before, expected = model.generate(IDS, **ask), logits(model)
    assert len(sparsify_linears(model)) == 14
    values = "fp32" if dtype == torch.float32 else "bf16"
    torch.testing.assert_close(logits(model), expected, **near(path, values))
    after = model.generate(IDS, **ask)
    assert after.shape[1] == before.shape[1]
    assert dtype == torch.bfloat16 or torch.equal(after, before)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("fuse", [True, False])
def test_adapters_are_fused_or_left_to_peft(name: str, fuse: bool, path: str, tmp_path: Path) -> None:
    half_sparse(tmp_path / "base", name)
    names = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[name]
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False, fan_in_fan_out=name == "gpt2")
    model = get_peft_model(sparse_model(name), lora).eval()
    before, state = logits(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert sparsify_linears(model, fuse=fuse)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert sum(module.update is not None for module in packed) == (len(names) * 2 if fuse else 0)
    torch.testing.assert_close(logits(model), before, **near(path))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    densify_linears(model)
    assert torch.equal(logits(model), before)
    assert model.state_dict().keys() == state.keys()


def test_only_plain_lora_is_fused(path: str) -> None:
    options: list[dict[str, Any]] = [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}]
    for extra in options:
        lora = LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False, **extra)
        model = get_peft_model(sparse_model(biases=True), lora)
        model.train("lora_dropout" in extra)
        kept = logits(model.eval())
        model.train("lora_dropout" in extra)
        sparsify_linears(model)
        assert not any(module.update for module in model.modules() if isinstance(module, PackedLinear))
        torch.testing.assert_close(logits(model.eval()), kept, **near(path))
    masked = get_peft_model(sparse_model(), LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False)).eval()
    make_sparse(masked)
    before = logits(masked)
    sparsify_linears(masked)
    torch.testing.assert_close(logits(masked), before, **near(path))


def test_the_weight_of_a_conv1d_is_read_as_it_is_stored(path: str) -> None:
    """DoRA takes norms of the base's weight; a square one would silently be read transposed."""
    lora = LoraConfig(
        r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True, init_lora_weights=False
    )
    model = get_peft_model(sparse_model("gpt2"), lora).eval()
    before = logits(model)
    assert sparsify_linears(model)
    torch.testing.assert_close(logits(model), before, **near(path))


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8", "int4"])
def test_one_linear_computes_the_formula(values: NumberFormat, path: str) -> None:
    weight, generator = sparse_weight(37, 24, 0.7), torch.Generator().manual_seed(3)
    original = nn.Linear(24, 37)
    original.weight.data = weight
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 24), (37, 2)))
    inner: Any = nn.Sequential(original)
    model: Any = get_peft_model(inner, LoraConfig(r=2, lora_alpha=6, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    sparsify_linears(model.eval(), values=values)
    whole = dense(pack(weight, values)).double()
    for tokens in (0, 1, 5):
        x = torch.randn(2, tokens, 24, generator=generator)
        with torch.no_grad():
            got = model(x)
        exact = x.double() @ (whole + 3.0 * b.double() @ a.double()).T + original.bias.double()
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-4 if values == "fp32" else 0.3)


def test_gradients_reach_the_inputs_as_before(path: str) -> None:
    model = nn.Sequential(nn.Linear(24, 37, bias=False), nn.Linear(37, 5))
    model[0].weight.data = sparse_weight(37, 24, 0.8)
    x = torch.randn(3, 24, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    assert sparsify_linears(model) == ["0"]
    (got,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(got, expected)


def test_other_dtypes_and_autocast_compute_as_a_linear_does(path: str) -> None:
    model = nn.Sequential(nn.Linear(24, 37))
    model[0].weight.data = sparse_weight(37, 24, 0.8)
    x = torch.randn(3, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
    sparsify_linears(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.05)
    with torch.no_grad():
        assert model(x.double()).dtype == torch.float64


def test_a_shared_module_is_packed_once_and_stays_shared(path: str) -> None:
    shared = nn.Linear(24, 24)
    shared.weight.data = sparse_weight(24, 24, 0.8)
    model = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared)])
    sparsify_linears(model)
    assert model[0][0] is model[1][0]  # type: ignore[index]
    densify_linears(model)
    assert model[0][0] is model[1][0] is shared  # type: ignore[index]


@pytest.mark.skipif(not kernels_available(), reason="needs the C++ kernels")
def test_the_head_is_multiplied_by_the_kernels_and_stays_tied() -> None:
    model: Any = sparse_model("llama")
    before = logits(model)
    sparsify_linears(model)
    assert isinstance(model.lm_head, DenseLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), before, **near("kernels"))


COMPILED = """
import torch
from shears.runtime.drop_in.swap import sparsify_linears
linear = torch.nn.Linear(32, 64)
linear.weight.data *= torch.rand(64, 32) < 0.4
model = torch.nn.Sequential(linear)
assert sparsify_linears(model)
x = torch.randn(3, 32)
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, model(x), rtol=0, atol=0)
for run in (model, torch.compile(model, backend="eager")):
    for width in (16, 64, 32 * 4096):
        try:
            with torch.no_grad():
                run(torch.zeros(2, width))
        except RuntimeError as error:
            assert "32" in str(error), error
        else:
            raise AssertionError(width)
"""


@pytest.mark.skipif(not kernels_available(), reason="needs the C++ kernels")
def test_torch_compile_sees_one_operation_and_inputs_of_another_width_are_refused() -> None:
    """The kernels would read and write out of bounds. A process of its own: checked signatures cannot be compiled."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "leaked" not in done.stderr  # of a model that is alive when Python ends


def test_missing_kernels_are_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(swap, "kernels_available", lambda: False)
    swap._warn_without_kernels.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sparsify_linears(sparse_model())
    assert caplog.text.count("without its C++ kernels") == 1
