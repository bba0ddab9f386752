"""Guesses from an answer's own text: what they are, and that no answer changes by them."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.runtime import batch
from shears.runtime.continuation import LONGEST, SHORTEST, Continuation, Lookup
from shears.runtime.engine import Engine
from shears.runtime.native import kernels_available
from tests.runtime.backends import END, TOKENIZER, lively
from tests.tiny import tiny_model

TOKENS = st.lists(st.integers(0, 2), max_size=30)


def naive(tokens: Sequence[int], most: int) -> list[int]:
    """Search the text from its end for the last 3, else 2, else 1 tokens."""
    for size, longest in SHORTEST.items():
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                going_on = list(tokens)
                for position in range(start + size, start + size + min(most, longest)):
                    going_on.append(going_on[position])
                return going_on[len(tokens) :]
    return []


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_a_guess_is_what_followed_the_last_tokens_before(prompt: list[int], answer: list[int], most: int) -> None:
    lookup = Lookup(prompt)
    for count in range(len(answer) + 1):
        assert lookup.guess(answer[:count], most) == naive(prompt + answer[:count], most)


def test_guesses_grow_where_they_hold_and_pause_where_they_fail() -> None:
    lookup = Lookup([5] * 40)
    sizes = []
    for right in (3, 4, 5, 6, 7, 0):
        sizes.append(len(lookup.guess([], 99)))
        lookup.learn(sizes[-1], right)
    assert sizes == [3, 4, 5, 6, LONGEST, LONGEST]
    for size in (2, 1):  # shorter n-grams go on until they fail, too
        assert len(lookup.guess([], 99)) == SHORTEST[size]
        lookup.learn(SHORTEST[size], 0)
    assert [len(lookup.guess([5] * count, 99)) for count in range(4)] == [0, 0, SHORTEST[3], SHORTEST[3]]


def both(monkeypatch: pytest.MonkeyPatch, prompts: Sequence[str], **options: Any) -> tuple[list[Continuation], int]:
    """Return the answers that must be the same with and without guesses, and the tokens that guesses saved."""
    from shears.runtime.native.decoder import NativeBackend
    from shears.runtime.native.model_source import source_of_model

    class Counting(NativeBackend):
        calls = 0

        def extend(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Any:
            self.calls += 1
            return super().extend(sequences, tokens)

    answers, calls = [], []
    for rows in (1, 8):
        monkeypatch.setattr(batch, "MOST_ROWS", rows)
        backend = Counting(source_of_model(lively("llama")), 1, max_sequences=4)
        engine = Engine(backend, TOKENIZER, frozenset([END]))
        answers.append([*engine.generate_all(prompts, **options), *engine.generate_all(prompts, **options)])
        calls.append(backend.calls)
    without, with_guesses = ([(each.text, each.tokens, each.finish) for each in some] for some in answers)
    assert with_guesses == without
    return answers[0], calls[0] - calls[1]


needs_kernels = pytest.mark.skipif(not kernels_available(), reason="the C++ extension is not built")


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"temperature": 0.2, "seed": 1}, {"stop": ["b"]}], ids=str)
def test_answers_are_the_same_in_fewer_steps(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    prompts = ["abcabcabcabc" * 3, "Question: how many?\nAnswer:", "the same, the same, the same"]
    answers, saved = both(monkeypatch, prompts, max_new_tokens=60, **options)
    assert len({answer.text for answer in answers}) == 3
    assert saved > 0


@needs_kernels
def test_tokens_that_a_grammar_forces_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    schema = {"const": {"the only answer": ["that", "there", "is"]}}
    answers, saved = both(monkeypatch, ["a"], json_schema=schema, max_new_tokens=80)
    assert answers[0].text == '{"the only answer": ["that", "there", "is"]}'
    assert saved > len(answers[0].tokens)


@needs_kernels
def test_a_guess_at_the_end_of_the_context_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = tiny_model("llama").config.max_position_embeddings
    prompt = "ab" * longest
    tokens = TOKENIZER(prompt)["input_ids"][: longest - 9]
    answers, _ = both(monkeypatch, [str(TOKENIZER.decode(tokens))], max_new_tokens=80)
    assert len(answers[0].prompt) + len(answers[0].tokens) == longest
