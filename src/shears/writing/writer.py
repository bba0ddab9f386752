"""Writing with a backend: texts are sampled together, and one begins as soon as another ends."""

from collections.abc import Callable
from itertools import count

from shears.errors import InputError
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.batch import Batch
from shears.writing.author import Author, Draft, TextRow

MOST_EMPTY = 64  # consecutive empty texts after which the model counts as unable to write


class TextWriter:
    """Texts being written until the known ones hold `tokens`; one begins as another ends.

    Every finished text is added to `known` and given to `keep`.
    """

    def __init__(
        self, author: Author, backend: Backend, known: dict[int, TextRow], keep: Callable[[TextRow], None]
    ) -> None:
        self._author = author
        self._batch = Batch[Draft](backend, shares_beginnings=True)
        self._most = backend.max_sequences
        self._known = known
        self._keep = keep
        self._numbers = (number for number in count() if number not in known)
        self._started: dict[int, Draft] = {}
        self._num_tokens = sum(row["tokens"] for row in known.values())

    def run(self) -> None:
        """Write all texts; InputError for a model that writes nothing or gives no numbers."""
        try:
            while self._begin():
                for text in [text for text in self._batch.advance() if text.done]:
                    if text.error is not None:
                        raise text.error
                    self._end(text)
        finally:
            self._batch.clear()

    def _begin(self) -> bool:
        """Begin texts while sequences are free and tokens lack; return whether any is open."""
        wanted = self._author.settings.tokens
        while len(self._batch) < self._most:
            total = self._num_tokens + sum(len(text.tokens) for text in self._started.values())
            if total >= wanted and (self._started or first_texts(self._known, wanted) is not None):
                break
            self._add(self._author.begin(next(self._numbers)))
        return bool(self._started)

    def _add(self, text: Draft) -> None:
        self._started[text.number] = text
        self._batch.add(text)

    def _end(self, text: Draft) -> None:
        """Let a finished user's turn be answered; keep any other text."""
        answer = self._author.answer(text) if text.is_chat and text.user is None else None
        if answer is not None:
            self._add(answer)
            return
        del self._started[text.number]
        row = self._known[text.number] = self._author.row(text)
        self._num_tokens += row["tokens"]
        self._keep(row)
        latest = list(self._known.values())[-MOST_EMPTY:]
        if len(latest) == MOST_EMPTY and not any(row["tokens"] for row in latest):
            raise InputError("a model must write text, this one ends every text at once; give a text of your own")


def first_texts(known: dict[int, TextRow], tokens: int) -> list[TextRow] | None:
    """Return the first texts that hold `tokens`, without empty ones; None if one is unknown."""
    rows: list[TextRow] = []
    total = 0
    for number in count():
        if total >= tokens:
            return rows
        if number not in known:
            return None
        total += known[number]["tokens"]
        rows += [known[number]] if known[number]["tokens"] else []
    raise AssertionError
