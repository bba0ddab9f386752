"""A conversation: turns that a model reads again with every answer; too many, and the oldest are forgotten."""

from collections.abc import Generator

from shears.config import SamplingConfig
from shears.runtime.generation.answer import Answer
from shears.runtime.generation.worker import Worker

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

        A text that is refused changes nothing.

        What has been said when the pieces are left is kept as a turn.
        """
        turns, tokens = self._fitting([*self.turns, {"role": "user", "content": text}])
        seed = self._options.seed + self._num_answers
        answer = Answer(tokens, self._options, self._worker.engine.voice, seed)
        stream = self._worker.stream_answer(answer)
        self.num_forgotten += len(self.turns) + 1 - len(turns)
        self.turns, self._num_answers = turns, self._num_answers + 1
        return answer, self._kept(stream)

    def _fitting(self, turns: list[Turn]) -> tuple[list[Turn], list[int]]:
        """Return the latest turns that leave room for an answer, and all that the model reads with them as tokens."""
        engine = self._worker.engine
        tokens = engine.encode_chat([*self._first, *turns])
        while len(turns) > 1 and len(tokens) + self._room() > engine.backend.max_length:
            turns = turns[2:]
            tokens = engine.encode_chat([*self._first, *turns])
        return turns, tokens

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
