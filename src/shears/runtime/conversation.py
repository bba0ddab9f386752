"""A conversation: turns that a model reads again with every answer; too many, and the oldest are forgotten."""

from collections.abc import Generator

from shears.errors import InputError
from shears.recipe import SamplingConfig
from shears.runtime.answer import Answer
from shears.runtime.worker import Worker

Turn = dict[str, str]


class Conversation:
    """Turns of user and model, behind what the model is told at the beginning (`system`, None: what its template says).

    Each answer has random numbers of its own, from the seed and its place.
    """

    def __init__(self, worker: Worker, options: SamplingConfig, system: str | None = None) -> None:
        self._worker, self._options = worker, options
        self._first: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Turn] = []
        self.num_forgotten = 0
        self._num_answers = 0

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()
        self.num_forgotten = 0

    def say(self, text: str) -> tuple[Answer, Generator[str, None, None]]:
        """Return the answer to a text, and its pieces as they come; InputError for a text that is too long.

        What has been said when the pieces are left is kept as a turn.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            answer = self._answer()
            stream = self._worker.stream_answer(answer)
        except InputError:
            self.turns.pop()
            raise
        self._num_answers += 1
        return answer, self._kept(stream)

    def _answer(self) -> Answer:
        engine = self._worker.engine
        tokens = engine.encode_chat([*self._first, *self.turns])
        while len(self.turns) > 1 and len(tokens) + self._room() > engine.backend.max_length:
            del self.turns[:2]
            self.num_forgotten += 2
            tokens = engine.encode_chat([*self._first, *self.turns])
        return Answer(tokens, self._options, engine.voice, self._options.seed + self._num_answers)

    def _room(self) -> int:
        """Return how many tokens are kept free for an answer: what it may have, at most a quarter of the model's."""
        return min(self._options.max_new_tokens, self._worker.engine.backend.max_length // 4)

    def _kept(self, stream: Generator[str, None, None]) -> Generator[str, None, None]:
        said = ""
        try:
            for piece in stream:
                said += piece
                yield piece
        finally:
            stream.close()
            self.turns.append({"role": "assistant", "content": said})
