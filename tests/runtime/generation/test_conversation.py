"""A conversation: every answer is the model's own after all turns before it."""

from collections.abc import Iterator

import pytest

from shears.config import SamplingConfig
from shears.errors import InputError
from shears.runtime.generation.conversation import Conversation
from shears.runtime.generation.worker import Worker
from tests.runtime.generation.backends import TOKENIZER, always, engine_of, lively
from tests.tiny import LONGEST

LETTER = TOKENIZER("z")["input_ids"][0]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(engine_of(lively())) as worker:
        yield worker


def _said(conversation: Conversation, text: str) -> str:
    return "".join(conversation.say(text)[1])


def test_an_answer_is_the_models_own_after_all_turns(worker: Worker) -> None:
    conversation = Conversation(worker, SamplingConfig(max_new_tokens=6), "Be short.")
    turns = [{"role": "system", "content": "Be short."}]
    for text in ("hi", "and?", "so"):
        turns.append({"role": "user", "content": text})
        tokens = worker.engine.encode_chat(turns)
        expected = "".join(worker.stream(tokens, max_new_tokens=6))
        assert _said(conversation, text) == expected
        turns.append({"role": "assistant", "content": expected})
    assert conversation.turns == turns[1:]
    conversation.reset()
    assert _said(conversation, "hi") == turns[2]["content"]


def test_each_answer_is_drawn_anew_and_the_same_conversation_again(worker: Worker) -> None:
    def answers() -> list[str]:
        conversation = Conversation(worker, SamplingConfig(max_new_tokens=6, temperature=1.0))
        found = []
        for _ in range(3):
            found.append(_said(conversation, "hi"))
            conversation.reset()
        return found

    assert answers() == answers()
    assert len(set(answers())) == 3


def test_an_answer_that_is_left_is_kept_as_far_as_it_came() -> None:
    with Worker(engine_of(always(LETTER), 1), max_waiting=0) as worker:
        conversation = Conversation(worker, SamplingConfig(max_new_tokens=100))
        _, stream = conversation.say("a")
        assert [next(stream), next(stream)] == ["z", "z"]
        stream.close()
        assert conversation.turns[-1] == {"role": "assistant", "content": "zz"}
        assert len(_said(conversation, "b")) == 100


def test_the_oldest_turns_are_forgotten_when_the_model_is_full() -> None:
    with Worker(engine_of(always(LETTER))) as worker:
        conversation = Conversation(worker, SamplingConfig(max_new_tokens=30), "s")
        assert [len(_said(conversation, f"{number}" * 20)) for number in range(9)] == [30] * 9
        assert conversation.num_forgotten > 0
        assert [turn["role"] for turn in conversation.turns[:2]] == ["user", "assistant"]
        assert len(worker.engine.encode_chat(conversation.turns)) < LONGEST


def test_a_text_that_is_too_long_is_refused_and_not_kept(worker: Worker) -> None:
    conversation = Conversation(worker, SamplingConfig(max_new_tokens=4))
    with pytest.raises(InputError, match="must be shorter than the model's"):
        conversation.say("a" * LONGEST)
    assert conversation.turns == []
    for text in ("hi", "and?"):
        _said(conversation, text)
    before = list(conversation.turns)
    with pytest.raises(InputError, match="must be shorter than the model's"):
        conversation.say("a" * LONGEST)
    assert conversation.turns == before  # a paste that does not fit wipes nothing
    assert conversation.num_forgotten == 0
    assert worker.num_open == 0
