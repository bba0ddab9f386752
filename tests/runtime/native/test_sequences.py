"""Sequences of the native decoder: apart from each other, in pieces, on several threads; and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.native.model_source import source_of_model
from tests.runtime.native.decoders import OF_THIS_YEAR, backend, covered, extension_is_missing, text, with_lora
from tests.tiny import VOCABULARY

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native.decoder import NativeBackend


def assert_close(got: Any, want: Any) -> None:
    """Several tokens together are summed in another order than one."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def runtime() -> NativeBackend:
    """A model with windows of 8 positions."""
    return backend(with_lora(covered("mistral, window"), ["q_proj", "o_proj", "up_proj"]))


@pytest.fixture(autouse=True)
def _nothing_remembered(runtime: NativeBackend) -> None:
    for sequence in range(runtime.max_sequences):
        runtime.drop(sequence)


@pytest.mark.parametrize("name", OF_THIS_YEAR)
def test_pieces_and_resumed_sequences_of_every_architecture(name: str) -> None:
    runtime, tokens = backend(covered(name)), text(150)
    whole = runtime.logits(tokens)
    for start, end in ((0, 1), (1, 70), (70, 134)):
        assert_close(runtime.prefill(0, tokens[start:end]), whole[end - 1])
    runtime.prefill(1, tokens[:134])
    runtime.prefill(2, tokens[:10])
    rows = runtime.step([1, 2], [tokens[134], tokens[10]])
    assert_close(rows, whole[[134, 10]])
    assert_close(runtime.prefill(0, tokens[134:]), whole[-1])
    runtime.drop(0)
    assert_close(runtime.prefill(0, tokens[:20]), whole[19])


def test_a_state_of_all_tokens_is_neither_copied_nor_cut() -> None:
    runtime = backend(covered("qwen3.5, gated delta nets"))
    runtime.prefill(0, text(20))
    assert not runtime.keeps_positions
    for call in (lambda: runtime.copy(0, 1, 12), lambda: runtime.shorten(0, 12)):
        with pytest.raises(InputError, match="must keep positions apart"):
            call()


@pytest.mark.parametrize("name", ["qwen3.5, gated delta nets", "gemma3, linear positions", "olmo2, norms behind"])
def test_evaluated_texts_have_the_same_bits_in_company_and_on_two_threads(name: str) -> None:
    source = source_of_model(covered(name))
    results = []
    for threads, company in ((1, []), (2, [1, 2])):
        runtime = NativeBackend(source, threads, for_evaluation=True)
        for sequence in (0, *company):
            runtime.prefill(sequence, text(12, seed=sequence))
        results.append([runtime.step([*company, 0], [7] * (1 + len(company)))[-1] for _ in range(3)])
    np.testing.assert_array_equal(results[0], results[1])


def test_a_text_beyond_the_original_length_of_longrope_is_refused() -> None:
    source = source_of_model(covered("phi3, longrope"))
    runtime = NativeBackend(source, 1, max_length=1 << 20, for_evaluation=True)
    with pytest.raises(InputError, match="a sequence must have 1 to 160 tokens, got 0 and 161 more"):
        runtime.logits(text(161))


@pytest.mark.parametrize("values", ["fp32", "int4"])
def test_several_tokens_of_several_sequences_come_in_one_step(values: str) -> None:
    runtime = backend(covered("mistral, window"), values)  # type: ignore[arg-type]
    texts = {2: text(70, seed=2), 0: text(9, seed=1)}
    for sequence, tokens in texts.items():
        runtime.prefill(sequence, tokens[:-5])
    together = runtime.extend([2, 0], [texts[2][-5:], texts[0][-5:-2]])
    assert_close(together, np.concatenate([runtime.logits(texts[2])[-5:], runtime.logits(texts[0])[4:7]]))


@settings(max_examples=10)
@given(kept=st.integers(0, 149))
def test_a_shortened_sequence_goes_on_as_if_it_had_never_been_longer(runtime: NativeBackend, kept: int) -> None:
    tokens = text(150)
    runtime.drop(0)
    runtime.prefill(0, [*tokens[:kept], *text(150, seed=1)[kept:]])
    whole = runtime.logits(tokens)  # the first text that is scored takes memory of its own
    memory = runtime.describe()["memory_bytes"]
    runtime.shorten(0, kept)
    assert_close(runtime.prefill(0, tokens[kept:]), whole[-1])
    assert runtime.describe()["memory_bytes"] == memory


WRONG: dict[str, tuple[Callable[[NativeBackend], object], str]] = {
    "no token": (lambda it: it.prefill(0, []), "a sequence must have 1 to 256 tokens, got 0 and 0 more"),
    "negative token": (lambda it: it.prefill(0, [3, -1]), "tokens must be in 0 to 256, got -1 to 3"),
    "large token": (lambda it: it.logits([VOCABULARY]), "tokens must be in 0 to 256, got 257 to 257"),
    "sequence too high": (lambda it: it.prefill(4, [1]), "a sequence's number must be in 0 to 3, got 4"),
    "negative sequence": (lambda it: it.drop(-1), "a sequence's number must be in 0 to 3, got -1"),
    "same sequence twice": (lambda it: it.step([1, 1], [2, 3]), "a step takes different sequences"),
    "tokens missing": (
        lambda it: it.step([1, 2], [2]),
        "a step takes different sequences and a token or more for each",
    ),
    "text too long": (
        lambda it: it.logits([1] * 257),
        "a sequence must have 1 to 256 tokens, got 0 and 257 more; shorten the prompt",
    ),
    "too many tokens": (lambda it: it.extend([0], [[1] * 65]), "a step must have at most 64 tokens in all, got 65"),
    "longer than it is": (lambda it: it.shorten(0, 1), "a sequence must keep 0 to its 0 tokens, got 1"),
    "sequence full": (lambda it: (it.prefill(0, [1] * 256), it.step([0], [1])), "got 256 and 1 more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_computed_is_refused(runtime: NativeBackend, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        call(runtime)


def test_another_adapter_replaces_the_first_as_if_the_model_had_been_made_with_it() -> None:
    adapted = with_lora(covered("qwen2, biases"), ["q_proj", "v_proj", "up_proj", "down_proj"])
    tokens = text(20)
    updates = dict(source_of_model(adapted).updates)
    cut = {
        name: LoraUpdate(update.a[:2], update.b[:, :2], update.scaling)
        for name, update in updates.items()
        if "layers.0" in name
    }
    bare = backend(covered("qwen2, biases"))
    expected = {"none": bare.logits(tokens)}
    for name, other in (("all", updates), ("cut", cut)):
        source = replace(source_of_model(adapted, "fp32"), updates=other)
        expected[name] = NativeBackend(source, 1, max_length=64, max_sequences=4).logits(tokens)
    runtime = backend(adapted)
    runtime.prefill(0, tokens)
    for name, other in (("cut", cut), ("none", {}), ("all", updates)):
        runtime.adapt(other)
        np.testing.assert_array_equal(runtime.logits(tokens), expected[name])
        runtime.prefill(0, tokens[:3])  # the sequence is empty again
        runtime.drop(0)
    assert len({each.tobytes() for each in expected.values()}) == 3
    with pytest.raises(InputError, match="must know every part of a model and its adapter, it does not know lm_head"):
        runtime.adapt({"lm_head": updates["model.layers.0.self_attn.q_proj"]})
    np.testing.assert_array_equal(runtime.logits(tokens), expected["all"])
