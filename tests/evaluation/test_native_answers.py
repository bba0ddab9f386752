"""Answers by the native decoder: those of transformers, in any company."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from peft import PeftModel
from torch import nn

from shears.config import EvaluateConfig
from shears.data.tokens import prompt_ids
from shears.errors import InputError
from shears.evaluation.decode import Decoder, wanted_for
from shears.evaluation.evaluated import WrittenText
from shears.models.sparse_adapter import make_sparse
from shears.runtime.backend import Backend
from shears.runtime.loading import native_backend
from tests.runtime.backends import lively
from tests.runtime.native.decoders import covered, extension_is_missing, with_lora
from tests.tiny import tiny_tokenizer

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native.decoder import NativeBackend

TOKENIZER = tiny_tokenizer()
SHARED = "Below is an instruction.\n\n" * 3
PROMPTS = ["a", *(f"{SHARED}How many are {n} and {n * n}?{'!' * (7 * n % 5)}" for n in range(9)), "xy" * 40]
OPTIONS: dict[str, Any] = {"task": "mawps", "data": "x", "num_beams": 1, "batch_size": 3, "precision": "fp32"}


def _config(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{**OPTIONS, **changes})


def _native(model: nn.Module, **changes: Any) -> NativeBackend:
    backend = native_backend(model, wanted_for(_config(backend="native", **changes)))
    assert backend is not None
    return backend


def _answers(
    model: nn.Module, backend: Backend, prompts: list[list[int]], count: int = 12, until: str = ""
) -> list[WrittenText]:
    return Decoder(model, TOKENIZER, count, until, backend=backend).answers(prompts, 1)


def _masked() -> PeftModel:
    model = with_lora(covered("qwen2, biases"), ["q_proj", "down_proj"])
    make_sparse(model)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sparse": lambda: covered("qwen2, biases"),
    "dense": lambda: lively("llama"),
    "sparse with an adapter of several ranks": lambda: with_lora(
        covered("qwen2, biases"), ["q_proj", "v_proj", "down_proj"]
    ),
    "dense with an adapter": lambda: with_lora(lively("llama"), ["q_proj", "up_proj"]),
    "windows": lambda: covered("mistral, window"),
    "an adapter masked by the base's zeros": _masked,
}


@pytest.mark.parametrize("until", ["", "\n"])
@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_those_of_transformers(name: str, until: str) -> None:
    model = MODELS[name]()
    prompts = prompt_ids(PROMPTS, TOKENIZER)
    expected = Decoder(model, TOKENIZER, 12, until).answers(prompts, 4)
    assert _answers(model, _native(model), prompts, until=until) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("name", ["sparse", "dense with an adapter", "an adapter masked by the base's zeros"])
def test_a_model_that_is_consumed_gives_its_weights_away_and_the_answers_stay(name: str) -> None:
    prompts = prompt_ids(PROMPTS[:3], TOKENIZER)
    model = MODELS[name]()
    expected = _answers(model, _native(model), prompts)
    backend = native_backend(model, wanted_for(_config()), consume=True)
    assert backend is not None
    left = [weight.numel() for name, weight in model.named_parameters() if re.search(r"_proj\.(base_.*)?weight", name)]
    assert set(left) == {0}
    assert _answers(model, backend, prompts) == expected


def test_damaged_weights_are_told() -> None:
    model = covered()
    nn.init.constant_(model.get_parameter("model.norm.weight"), float("nan"))
    with pytest.raises(InputError, match="logits must be numbers, got nan"):
        _answers(model, _native(model), [[1, 2]])
    with pytest.raises(InputError, match="a prompt must not be empty, prompt 2 is"):
        _answers(model, _native(model), [[1, 2], []])
