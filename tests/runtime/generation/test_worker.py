"""A worker: threads share an engine, and each gets the text it would have had alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shears.errors import InputError
from shears.runtime.generation.worker import BusyError, ClosedError, Worker
from tests.processes import until
from tests.runtime.generation.backends import TOKENIZER, always, engine_of, lively

LETTER = TOKENIZER("z")["input_ids"][0]
PROMPTS = ["a", "Question: how many?", "xy" * 20, "the same length!!", "and another one..", "b", "c", "d"]


@pytest.mark.parametrize("places", [1, 3, 16])
def test_threads_get_the_texts_they_would_have_alone(places: int) -> None:
    alone = [engine_of(lively()).generate(prompt, max_new_tokens=12).text for prompt in PROMPTS]
    with Worker(engine_of(lively(), places)) as worker, ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda prompt: "".join(worker.stream(prompt, max_new_tokens=12)), PROMPTS)
        assert list(together) == alone
        assert worker.num_open == 0


def test_a_text_joins_others_in_the_making() -> None:
    with Worker(engine_of(always(LETTER))) as worker:
        long = worker.stream("a", max_new_tokens=10**6)
        assert next(long) == "z"
        assert "".join(worker.stream("b", max_new_tokens=3)) == "zzz"
        assert next(long) == "z"
        long.close()


def test_a_text_that_is_left_gives_its_place_back() -> None:
    with Worker(engine_of(always(LETTER), 1), max_waiting=0) as worker:
        long = worker.stream("a", max_new_tokens=10**6)
        next(long)
        with pytest.raises(BusyError, match="at most 1 texts"):
            worker.stream("b")
        long.close()
        assert "".join(worker.stream("b", max_new_tokens=2)) == "zz"
        until(lambda: len(worker.engine.batch) == 0)


def test_several_texts_are_taken_on_together_or_not_at_all() -> None:
    with Worker(engine_of(always(LETTER), 2), max_waiting=1) as worker:
        answers = [worker.engine.new_answer("a", max_new_tokens=10**6) for _ in range(4)]
        with pytest.raises(InputError, match="at most 3 texts can be open at once, got 4; ask for fewer"):
            worker.submit(answers, [lambda piece, last: None] * 4)
        assert worker.num_open == 0
        worker.submit(answers[:2], [lambda piece, last: None] * 2)
        with pytest.raises(BusyError):
            worker.submit(answers[2:], [lambda piece, last: None] * 2)
        assert worker.num_open == 2
        worker.cancel(answers)
        assert worker.num_open == 0


def test_a_refused_prompt_raises_at_the_call() -> None:
    with Worker(engine_of(lively())) as worker:
        for prompt in ("", "a" * 300):
            with pytest.raises(InputError, match="a prompt must"):
                worker.stream(prompt)
        with pytest.raises(InputError, match=r"must be in 0 to 256"):
            list(worker.stream([1, 999]))
        assert worker.num_open == 0


def test_a_step_that_fails_ends_its_texts_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(always(LETTER))
    step, broken = engine.backend.step, threading.Event()

    def sometimes(sequences: list[int], tokens: list[int]) -> object:
        if broken.is_set():
            raise MemoryError("no memory")
        return step(sequences, tokens)

    engine.backend.step = sometimes  # type: ignore[method-assign, assignment]
    with Worker(engine) as worker:
        stream = worker.stream("a", max_new_tokens=10**6)
        next(stream)
        broken.set()
        with pytest.raises(MemoryError):
            list(stream)
        broken.clear()
        assert "".join(worker.stream("b", max_new_tokens=2)) == "zz"
    assert "a step failed" in caplog.text


def test_a_prompt_that_fails_ends_its_own_text_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(always(LETTER))
    prefill = engine.backend.prefill

    def sometimes(sequence: int, tokens: list[int]) -> object:
        if len(tokens) > 5:
            raise RuntimeError("sizes differ")
        return prefill(sequence, tokens)

    engine.backend.prefill = sometimes  # type: ignore[method-assign, assignment]
    with Worker(engine) as worker:
        stream = worker.stream("a", max_new_tokens=10**6)
        next(stream)
        with pytest.raises(RuntimeError, match="sizes differ"):
            list(worker.stream("bbbbbb"))
        assert next(stream) == "z"
        stream.close()
    assert "reading a prompt failed" in caplog.text


def test_closing_ends_what_is_not_finished() -> None:
    worker = Worker(engine_of(always(LETTER), 1))
    running, waiting = (worker.stream("a", max_new_tokens=10**6) for _ in range(2))
    next(running)
    worker.close()
    worker.close()
    for stream in (running, waiting):
        with pytest.raises(ClosedError):
            list(stream)
    with pytest.raises(ClosedError):
        worker.stream("b")
    assert not worker.alive
    assert len(worker.engine.batch) == 0
