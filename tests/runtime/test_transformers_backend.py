"""Any model of transformers as a backend: the logits of the model itself, a cache a sequence, mistakes refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.runtime.backend import Backend
from shears.runtime.transformers_backend import TransformersBackend
from tests.runtime.backends import lively
from tests.tiny import tiny_model

NAMES = ["llama", "gemma2", "gpt2", "opt", "bloom", "mamba", "qwen3_5_text", "rwkv"]
TEXT = [5, 17, 200, 3, 88, 41, 7, 7, 9, 120, 33, 64]


def _oracle(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        numbers: np.ndarray = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    return numbers


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_the_models_own_however_the_text_is_cut(name: str) -> None:
    model = lively(name)
    backend: Backend = TransformersBackend(model)
    expected = _oracle(model, TEXT)
    close: Any = {"rtol": 1e-3, "atol": 1e-3 * float(np.abs(expected).max())}  # other order of sums, weights times 8
    np.testing.assert_allclose(backend.logits(TEXT), expected, **close)
    np.testing.assert_allclose(backend.prefill(0, TEXT[:5]), expected[4], **close)
    np.testing.assert_allclose(backend.prefill(0, TEXT[5:9]), expected[8], **close)
    np.testing.assert_allclose(backend.step([0], [TEXT[9]])[0], expected[9], **close)
    backend.drop(0)
    np.testing.assert_allclose(backend.prefill(0, TEXT), expected[-1], **close)


def test_a_model_that_keeps_its_state_to_itself_is_refused() -> None:
    backend = TransformersBackend(tiny_model("recurrent_gemma"))
    with pytest.raises(InputError, match="must return its cache to generate text, RecurrentGemmaForCausalLM does not"):
        backend.prefill(0, TEXT)
