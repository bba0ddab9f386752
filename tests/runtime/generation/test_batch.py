"""A batch reads equal prompts once, and gives each answer what it would have had alone."""

from typing import Any

import pytest

from shears.runtime.generation.answer import Answer
from shears.runtime.generation.engine import Engine
from shears.runtime.generation.transformers_backend import TransformersBackend
from tests.runtime.generation.backends import END, TOKENIZER, lively
from tests.runtime.native.decoders import backend, covered, extension_is_missing

LONG = [1 + n * n % 90 for n in range(150)]
OTHER = [*LONG[:140], 7]


@pytest.mark.parametrize("name", ["transformers", "llama, tied head", "qwen3.5, gated delta nets"])
def test_equal_prompts_are_read_once_and_the_answers_are_those_of_each_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "transformers" and extension_is_missing():
        pytest.skip("the C++ extension is not built")
    runtime: Any = TransformersBackend(lively()) if name == "transformers" else backend(covered(name))
    prompts = [LONG, OTHER, LONG, LONG]
    engine = Engine(runtime, TOKENIZER, frozenset([END]))
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "num_likeliest": 0}
    alone = [engine.generate(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    read: list[int] = []
    prefill = runtime.prefill

    def noted(sequence: int, tokens: Any) -> Any:
        read.append(len(tokens))
        return prefill(sequence, tokens)

    monkeypatch.setattr(runtime, "prefill", noted)
    answers = [engine.new_answer(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    found = _together(engine, answers)
    assert read == [len(LONG), len(OTHER)]
    assert [answer.tokens for answer in answers] == [list(each.tokens) for each in alone]
    assert len({answer.text for answer in found}) > 2  # seeds differ
    assert [each.scores[0] for each in found] == [each.scores[0] for each in alone]  # to the last bit


def test_an_equal_prompt_that_ends_at_once_leaves_the_others_their_copies() -> None:
    runtime = TransformersBackend(lively())
    engine = Engine(runtime, TOKENIZER, frozenset([END]))
    expected = engine.generate(LONG, max_new_tokens=6, temperature=0).tokens
    answers = [engine.new_answer(LONG, max_new_tokens=count, temperature=0) for count in (1, 6, 3)]
    found = _together(engine, answers)
    assert [each.tokens for each in found] == [expected[:1], expected, expected[:3]]
    assert runtime.prefill(0, LONG).shape == (runtime.vocab_size,)  # all sequences are free again


def _together(engine: Engine, answers: list[Answer]) -> list[Any]:
    for answer in answers:
        engine.batch.add(answer)
    while len(engine.batch):
        engine.batch.advance()
    return [answer.result() for answer in answers]
