"""A conversation: the model reads all turns for every answer; the oldest go if room lacks."""

from collections.abc import Generator

from shears.config import SamplingConfig
from shears.runtime.generation.answer import Answer
from shears.runtime.generation.worker import Worker

Turn = dict[str, str]


class Conversation:
    """Turns of user and model after a system message; None leaves it to the chat template.

    Each answer has its own random numbers, from the seed and the answer's index.
    """

    def __init__(self, worker: Worker, options: SamplingConfig, system: str | None = None) -> None:
        self._worker = worker
        self._options = options
        self._system: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Turn] = []
        self.num_forgotten = 0
        self._num_answers = 0

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()
        self.num_forgotten = 0

    def say(self, text: str) -> tuple[Answer, Generator[str, None, None]]:
        """Return the answer to a text, and a generator of its pieces.

        When the generator ends, the text generated so far becomes a turn. InputError for a text
        that is too long; the conversation then stays as it was.
        """
        turns, tokens = self._fitting([*self.turns, {"role": "user", "content": text}])
        seed = self._options.seed + self._num_answers
        answer = Answer(tokens, self._options, self._worker.engine.text_settings, seed)
        pieces = self._worker.stream_answer(answer)
        self.num_forgotten += len(self.turns) + 1 - len(turns)
        self.turns = turns
        self._num_answers += 1
        return answer, self._recorded(pieces)

    def _fitting(self, turns: list[Turn]) -> tuple[list[Turn], list[int]]:
        """Return the latest turns that leave room for an answer, and all tokens to read."""
        engine = self._worker.engine
        longest = engine.backend.max_length
        room = min(self._options.max_new_tokens, longest // 4)  # tokens kept free for the answer
        tokens = engine.encode_chat([*self._system, *turns])
        while len(turns) > 1 and len(tokens) + room > longest:
            turns = turns[2:]
            tokens = engine.encode_chat([*self._system, *turns])
        return turns, tokens

    def _recorded(self, pieces: Generator[str, None, None]) -> Generator[str, None, None]:
        text = ""
        try:
            for piece in pieces:
                text += piece
                yield piece
        finally:
            pieces.close()
            self.turns.append({"role": "assistant", "content": text})
