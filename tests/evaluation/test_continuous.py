"""Answers by the native decoder: those of transformers, in any company, resumed and chosen as configured."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from shears.config import EvaluateConfig
from shears.data.tokens import prompt_ids
from shears.errors import InputError
from shears.evaluation.continuous import ContinuousDecoder, wanted_for
from shears.evaluation.generate import Decoder
from shears.evaluation.records import TextJournal, WrittenText, journal_path
from shears.evaluation.run import evaluate
from shears.models.sparse_adapter import make_sparse
from shears.runtime.choice import native_backend
from shears.runtime.generation.backend import Backend
from tests.runtime.generation.backends import always, lively
from tests.runtime.native.decoders import covered, extension_is_missing, with_lora
from tests.tiny import LONGEST, save_tiny, tiny_model, tiny_tokenizer

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native.decoder import NativeBackend

TOKENIZER = tiny_tokenizer()
SHARED = "Below is an instruction.\n\n" * 3
PROMPTS = ["a", *(f"{SHARED}How many are {n} and {n * n}?{'!' * (7 * n % 5)}" for n in range(9)), "xy" * 40]
OPTIONS: dict[str, Any] = {
    "task": "mawps", "data": "rows.jsonl", "max_new_tokens": 4, "num_beams": 1, "batch_size": 3, "precision": "fp32",
}  # fmt: skip
ROWS = "".join(f'{{"instruction": "How many are {n} and {n * n}?", "answer": "{n + n * n}.0"}}\n' for n in range(7))


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
    assert _answers(model, _native(model), [[1, 2]], 3) == Decoder(model, TOKENIZER, 3).answers([[1, 2]], 1)
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


def test_prompts_beyond_the_context_go_on_as_in_transformers() -> None:
    model = covered()
    prompts = [[1 + n % 200 for n in range(LONGEST + 5)], [3, 4, 5]]
    expected = Decoder(model, TOKENIZER, 6).answers(prompts, 1)
    assert _answers(model, _native(model), prompts, 6) == expected


def test_damaged_weights_are_told() -> None:
    model = covered()
    nn.init.constant_(model.get_parameter("model.norm.weight"), float("nan"))
    with pytest.raises(InputError, match="must give finite logits, got nan"):
        _answers(model, _native(model), [[1, 2]])
    with pytest.raises(InputError, match="a prompt must not be empty, number 2 is"):
        _answers(model, _native(model), [[1, 2], []])


REASONS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "architecture": (lambda: tiny_model("gpt2"), {}, "covers llama, .*, not gpt2"),
    "beams": (tiny_model, {"num_beams": 4}, r"answers greedily \(num_beams 1\), got 4 beams"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_covered_falls_back_with_one_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, changes, message = REASONS[name]
    caplog.set_level(logging.INFO)
    assert native_backend(model(), wanted_for(_config(), **changes)) is None
    [line] = caplog.messages
    assert line.startswith("transformers computes: ")
    assert re.search(message, line)


@pytest.mark.parametrize("name", REASONS)
def test_native_on_what_is_not_covered_is_one_error(name: str) -> None:
    model, changes, message = REASONS[name]
    with pytest.raises(InputError, match=f"backend native must cover the model: .*{message}; use --backend"):
        native_backend(model(), wanted_for(_config(backend="native"), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_beams": 4}, "needs greedy answers, got 4 beams"), ({"protocol": "choices"}, "got task mawps, which gen")],
)
def test_native_needs_greedy_answers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(backend="native", **changes)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(ROWS)
    return save_tiny(tmp_path / "base")


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def _kill_after(monkeypatch: pytest.MonkeyPatch, until: int) -> list[int]:
    """Note the numbers of the texts kept; die after some."""
    kept: list[int] = []
    put = TextJournal.put

    def spy(self: TextJournal, numbers: Any, texts: Any) -> None:
        put(self, numbers, texts)
        kept.extend(numbers)
        if len(kept) == until:
            raise Killed

    monkeypatch.setattr(TextJournal, "put", spy)
    return kept


def test_a_killed_evaluation_goes_on_text_by_text_and_ends_with_the_same_bytes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(base), "whole.json", **OPTIONS)
    with monkeypatch.context() as patch:
        first = _kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(str(base), "killed.json", **OPTIONS)
    with monkeypatch.context() as patch:
        second = _kill_after(patch, 99)
        evaluate(str(base), "killed.json", **OPTIONS)
    assert (len(first), sorted(first + second)) == (3, list(range(7)))
    assert Path("killed.json").read_bytes() == Path("whole.json").read_bytes()
    assert not journal_path(Path("killed.json")).exists()


def test_a_record_names_its_backend_and_no_backend_continues_the_journal_of_another(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(base), "native.json", **OPTIONS)
    evaluate(str(base), "transformers.json", backend="transformers", **OPTIONS)
    native, other = (json.loads(Path(f"{name}.json").read_text()) for name in ("native", "transformers"))
    assert (native.pop("backend"), other.pop("backend")) == ("native", "transformers")
    assert native == other
    for before, after in (("native", "transformers"), ("transformers", "native")):
        with monkeypatch.context() as patch:
            _kill_after(patch, 3)
            with pytest.raises(Killed):
                evaluate(str(base), "killed.json", backend=before, **OPTIONS)
        with monkeypatch.context() as patch:
            kept = _kill_after(patch, 99)
            evaluate(str(base), "killed.json", backend=after, **OPTIONS)
        assert sorted(kept) == list(range(7))
