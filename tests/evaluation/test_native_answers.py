"""Answers by the native decoder: those of transformers, in any company."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from shears.config import EvaluateConfig
from shears.data.tokens import prompt_ids
from shears.errors import InputError
from shears.evaluation.decode import ContinuousDecoder, Decoder, wanted_for
from shears.evaluation.evaluated import WrittenText
from shears.models.sparse_adapter import make_sparse
from shears.runtime.choice import native_backend
from shears.runtime.generation.backend import Backend
from tests.runtime.generation.backends import always, lively
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
    settings = getattr(model, "generation_config", None)
    return ContinuousDecoder(backend, TOKENIZER, settings, count, until).answers(prompts)


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


def test_a_text_ends_where_transformers_ends_it() -> None:
    letter, line = TOKENIZER("z\n")["input_ids"]
    model = always(letter)
    assert _answers(model, _native(model), [[1, 2]], 3) == [("zzz", True)]
    model.generation_config.eos_token_id = [256, letter]
    assert _answers(model, _native(model), [[1, 2]], 3) == [("", False)]
    model = always(line)
    assert _answers(model, _native(model), [[1, 2]], 3, until="\n") == [("\n\n\n", True)]


class Logged:
    """A backend that notes what it reads and copies, the steps before, and the logits it gives by the tokens before."""

    def __init__(self, inner: NativeBackend) -> None:
        self._inner = inner
        self._texts: dict[int, tuple[int, ...]] = {}
        self.read: list[int] = []
        self.begun: list[int] = []
        self._num_steps = 0
        self.copied: list[int] = []
        self.logits_after: dict[tuple[int, ...], bytes] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what is not noted."""
        return getattr(self._inner, name)

    def _note(self, sequence: int, tokens: tuple[int, ...], logits: Any) -> None:
        self._texts[sequence] = self._texts.get(sequence, ()) + tokens
        self.logits_after[self._texts[sequence]] = logits.tobytes()

    def prefill(self, sequence: int, tokens: Any) -> Any:
        """Note the tokens."""
        self.read.append(len(tokens))
        self.begun.append(self._num_steps)
        logits = self._inner.prefill(sequence, tokens)
        self._note(sequence, tuple(tokens), logits)
        return logits

    def step(self, sequences: Any, tokens: Any) -> Any:
        """Note the tokens."""
        self._num_steps += 1
        rows = self._inner.step(sequences, tokens)
        for sequence, token, logits in zip(sequences, tokens, rows, strict=True):
            self._note(sequence, (token,), logits)
        return rows

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Note the count."""
        self.copied.append(count)
        self._texts[sequence] = self._texts[source][:count]
        self._inner.copy(source, sequence, count)

    def drop(self, sequence: int) -> None:
        """Forget the tokens."""
        self._texts.pop(sequence, None)
        self._inner.drop(sequence)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_bit_of_an_answer_depends_on_company_or_on_shared_beginnings(precision: str) -> None:
    model = with_lora(covered("qwen2, biases"), ["q_proj", "v_proj", "down_proj"])
    prompts = prompt_ids(PROMPTS, TOKENIZER)
    together = Logged(_native(model, precision=precision, batch_size=16))
    few = Logged(_native(model, precision=precision))
    alone = Logged(_native(model, precision=precision, batch_size=1))
    texts = _answers(model, together, prompts)
    assert _answers(model, few, prompts) == texts
    assert _answers(model, alone, prompts) == texts
    assert together.logits_after == few.logits_after == alone.logits_after
    assert not alone.copied
    shared = len(TOKENIZER(f"{SHARED}How many are ")["input_ids"]) // 4 * 4
    assert together.copied == [shared] * 8
    assert few.copied == [shared] * 6  # three texts end at once, twice: then none is there to copy from
    assert sum(together.read) + 8 * shared == sum(map(len, prompts)) == sum(alone.read)


def test_an_ended_text_is_replaced_at_once_and_the_longest_prompt_is_first() -> None:
    model = always(TOKENIZER("z")["input_ids"][0])
    backend = Logged(_native(model, batch_size=2))
    _answers(model, backend, [[n] * n for n in (3, 9, 6, 4, 8)], 4)
    assert backend.read == [9, 8, 6, 4, 3]
    assert backend.begun == [0, 0, 3, 3, 6]  # steps before each prompt: all free sequences begin before the next step


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


def test_a_model_that_is_not_covered_keeps_its_weights() -> None:
    model = covered("qwen2, biases")
    model.register_parameter("more", nn.Parameter(torch.ones(2)))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert native_backend(model, wanted_for(_config()), consume=True) is None
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_damaged_weights_are_told() -> None:
    model = covered()
    nn.init.constant_(model.get_parameter("model.norm.weight"), float("nan"))
    with pytest.raises(InputError, match="logits must be numbers, got nan"):
        _answers(model, _native(model), [[1, 2]])
    with pytest.raises(InputError, match="a prompt must not be empty, number 2 is"):
        _answers(model, _native(model), [[1, 2], []])
