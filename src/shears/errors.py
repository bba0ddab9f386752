"""The exception for wrong input; each message says in one line what must hold, what came, what to do.

Also: which of other libraries' errors mean that memory is used up.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "shears-llm"
"""The name that pip installs; `shears` on PyPI is another project."""

RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Exceptions of code that reads a record with a missing key or a value of another type."""


class InputError(ValueError):
    """The input cannot be used; the command line prints a line per message and exits with code 2."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, by default Ctrl-C.

    `is_kept` says whether the same call can go on from what is kept, None where nothing had begun;
    a training goes on from `step`.
    """

    def __init__(self, number: int = signal.SIGINT, *, is_kept: bool | None = None, step: int | None = None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = int(number)
        self.is_kept = is_kept
        self.step = step

    @classmethod
    def of(cls, error: KeyboardInterrupt) -> "Interrupted":
        """Return an interruption, plain Ctrl-C among them, with what it says."""
        return error if isinstance(error, cls) else cls()


def heard_signals() -> list[signal.Signals]:
    """Return SIGINT and SIGTERM without those that the caller ignores, as a script does for `shears train &`."""
    return [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]


def install_hint(extra: str) -> str:
    """Return the command that installs an optional part of shears, such as serve."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class if that is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


ALLOCATION = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
"""In the messages of torch's RuntimeErrors when an allocation fails, on GPU and CPU."""


def memory_error(error: BaseException) -> BaseException | None:
    """Return the error, or one that caused it, if it says that memory is used up; else None."""
    for cause in causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and ALLOCATION.search(str(cause))):
            return cause
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, each once: an error can be its own cause."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is each for each in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__


@contextmanager
def memory_of(stage: str) -> Iterator[None]:
    """Note on an error that says that memory is used up which stage of a run used it."""
    try:
        yield
    except Exception as error:
        if memory_error(error) is not None:
            error.add_note(stage)
        raise
