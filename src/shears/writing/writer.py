"""Writing with a backend: texts are sampled together, and one begins as soon as another ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from shears.errors import InputError
from shears.progress import meter
from shears.records.journal import append_row, read_rows
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.batch import Batch, Continuation

MOST_EMPTY = 64  # consecutive empty texts after which the model counts as unable to write
TextRow = dict[str, Any]


@runtime_checkable
class Text(Continuation, Protocol):
    """A text, or a turn of it, with the text's number."""

    @property
    def number(self) -> int:
        """The number of the text."""


T = TypeVar("T", bound=Text)


@runtime_checkable
class Author(Protocol[T]):
    """Gives the prompt of every text by its number, and turns finished texts into rows."""

    def begin(self, number: int) -> T:
        """Return text number `number`, empty so far."""

    def answer(self, text: T) -> T | None:
        """Return the next turn of a text whose turn has ended; None if it is whole."""

    def row(self, text: T) -> TextRow:
        """Return a whole text as a row with its number and its tokens, 0 if it is empty."""


class Plan(NamedTuple):
    """Which texts are wanted: the first of `numbers` whose kept rows hold `tokens`; None: all."""

    numbers: Sequence[int]
    tokens: int | None
    is_kept: Callable[[TextRow], bool]

    def counted(self, row: TextRow) -> int:
        """Return the tokens of a row that count."""
        return int(row["tokens"]) if self.is_kept(row) else 0

    def first(self, known: dict[int, TextRow]) -> list[TextRow] | None:
        """Return the rows of the wanted texts, kept or not; None if one is unknown."""
        rows: list[TextRow] = []
        total = 0
        for number in self.numbers:
            if self.tokens is not None and total >= self.tokens:
                break
            if number not in known:
                return None
            rows.append(known[number])
            total += self.counted(known[number])
        return rows


class TextWriter(Generic[T]):
    """Texts being written until the wanted ones are known; one begins as another ends.

    Every finished text is added to `known` and given to `keep`, with the text.
    """

    def __init__(
        self,
        author: Author[T],
        backend: Backend,
        plan: Plan,
        known: dict[int, TextRow],
        keep: Callable[[TextRow, T], None],
    ) -> None:
        self._author = author
        self._plan = plan
        self._batch = Batch[T](backend, shares_beginnings=True)
        self._most = backend.max_sequences
        self._known = known
        self._keep = keep
        self._numbers = (number for number in plan.numbers if number not in known)
        self._started: dict[int, T] = {}
        self._num_tokens = sum(map(plan.counted, known.values()))

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
        """Begin texts while sequences are free and texts lack; return whether any is open."""
        while len(self._batch) < self._most and not self._has_enough():
            number = next(self._numbers, None)
            if number is None:
                break
            self._add(self._author.begin(number))
        return bool(self._started)

    def _has_enough(self) -> bool:
        if self._plan.tokens is None:
            return False
        total = self._num_tokens + sum(len(text.tokens) for text in self._started.values())
        return total >= self._plan.tokens and bool(self._started or self._plan.first(self._known) is not None)

    def _add(self, text: T) -> None:
        self._started[text.number] = text
        self._batch.add(text)

    def _end(self, text: T) -> None:
        """Let a finished user's turn be answered; keep any other text."""
        answer = self._author.answer(text)
        if answer is not None:
            self._add(answer)
            return
        del self._started[text.number]
        row = self._known[text.number] = self._author.row(text)
        self._num_tokens += self._plan.counted(row)
        self._keep(row, text)
        latest = list(self._known.values())[-MOST_EMPTY:]
        if len(latest) == MOST_EMPTY and not any(row["tokens"] for row in latest):
            raise InputError("a model must write text, this one ends every text at once; give a text of your own")


def is_text_row(row: Any) -> bool:
    """Return whether the content of a line is a row that was written: a number, tokens, a text if any."""
    match row:
        case {"number": int(number), "tokens": int(tokens)}:
            content = row.get("text", row.get("messages", row.get("completion")))
            return number >= 0 and tokens >= 0 and (tokens == 0 or isinstance(content, str | list))
    return False


def written_rows(plan: Plan, journal: Path, open_author: Callable[[], tuple[Author[Any], Backend]]) -> list[TextRow]:
    """Return the rows of the wanted texts; those that the journal lacks are written and appended to it."""
    known = {row["number"]: row for row in read_rows(journal) if is_text_row(row)}
    if plan.first(known) is None:
        author, backend = open_author()
        unit = "answers" if plan.tokens is None else "tokens"
        with meter("writing", plan.tokens or len(plan.numbers), unit) as progress:
            done = sum(map(plan.counted, known.values())) if plan.tokens else len(known)
            progress.skip(min(done, plan.tokens or done))

            def keep(row: TextRow, text: Text) -> None:
                append_row(journal, row)
                progress.advance(plan.counted(row) if plan.tokens else 1, work=len(text.tokens), note="tokens/s")

            TextWriter(author, backend, plan, known, keep).run()
    rows = plan.first(known)
    assert rows is not None
    return rows
