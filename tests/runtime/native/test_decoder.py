"""The native decoder against transformers and PEFT."""

import copy

import numpy as np
import pytest
import torch

from shears.errors import InputError
from shears.runtime.native.model_source import source_of_model
from tests.runtime.native.decoders import MODELS, backend, covered, expected, extension_is_missing, text, with_lora

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native.decoder import NativeBackend

LENGTH = 150  # more than two blocks of the cache; the sliding windows are shorter
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_text_are_those_of_transformers(name: str) -> None:
    model, tokens = covered(name), text(LENGTH)
    np.testing.assert_allclose(backend(model).logits(tokens), expected(model, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", ["llama, own head", "qwen2, biases", "qwen3, norms of queries and keys"])
def test_bf16_is_as_near_to_exact_as_transformers_in_bf16(name: str, sparse: bool) -> None:
    model, tokens = covered(name).bfloat16(), text(LENGTH)
    exact = expected(copy.deepcopy(model).float(), tokens)
    ours = np.abs(backend(model, "bf16", sparse=sparse).logits(tokens) - exact).mean()
    assert ours <= np.abs(expected(model, tokens) - exact).mean()


@pytest.mark.parametrize("sparse", [True, False])
def test_int8_is_the_model_of_the_rounded_weights(sparse: bool) -> None:
    model, tokens = covered("llama, own head"), text(LENGTH)
    runtime = backend(model, "int8", sparse=sparse)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                scales = parameter.abs().amax(1, keepdim=True) / 127
                parameter.copy_((parameter / scales).round() * scales)
    exact = expected(model, tokens)
    assert np.abs(runtime.logits(tokens) - exact).max() < 1e-3 * np.abs(exact).max()  # 16-bit inputs


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("phi3, fused", ["qkv_proj", "down_proj"]),
        ("phi3, longrope", ["gate_up_proj", "o_proj"]),
        ("gemma3, linear positions", ALL),
        ("granite, biases", ALL),
        ("olmo2, norms behind", ALL),
        (
            "qwen3.5, gated delta nets",
            ["q_proj", "k_proj", "o_proj", "in_proj_qkv", "in_proj_a", "out_proj", "up_proj"],
        ),
    ],
)
def test_a_lora_of_every_architecture_gives_what_peft_gives(name: str, targets: list[str]) -> None:
    adapted, tokens = with_lora(covered(name), targets), text(LENGTH)
    runtime, want = backend(adapted), expected(adapted, tokens)
    np.testing.assert_allclose(runtime.logits(tokens), want, rtol=1e-4, atol=1e-5)
    runtime.adapt({})
    bare = backend(covered(name)).logits(tokens)
    np.testing.assert_array_equal(runtime.logits(tokens), bare)
    runtime.adapt(source_of_model(adapted).updates)
    np.testing.assert_allclose(runtime.logits(tokens), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["phi3, fused", "qwen3.5, gated delta nets"])
def test_a_fused_weight_is_released_once_all_its_parts_are_read(name: str) -> None:
    model, tokens = covered(name), text(20)
    want = expected(model, tokens)
    runtime = NativeBackend(source_of_model(model, consume=True), 2)
    np.testing.assert_allclose(runtime.logits(tokens), want, rtol=1e-4, atol=1e-5)
    assert not any(weight.numel() for name, weight in model.named_parameters() if "_proj" in name and weight.ndim == 2)


def test_a_fused_weight_of_other_rows_is_refused() -> None:
    source = source_of_model(covered("phi3, fused"))
    source.config.num_key_value_heads = 1
    with pytest.raises(InputError, match=r"qkv_proj must have the 48 rows of the model's config.json, got 64"):
        NativeBackend(source, 1)
