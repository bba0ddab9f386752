"""The exception for wrong input, and how errors of other libraries become one.

Each message is one line: what must hold, what came, what to do. Only `with reading(path):` and
`with option(name):` turn a library's error into one; the command line prints it and exits with 2.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

DISTRIBUTION = "shears-llm"
"""The name that pip installs; `shears` on PyPI is another project."""

RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Exceptions of code that reads a record with a missing key or a value of another type."""


class InputError(ValueError):
    """The input cannot be used; the command line prints each message and exits with code 2."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


LIBRARIES = frozenset({
    "safetensors", "safetensors_rust", "yaml", "pydantic_core", "huggingface_hub", "httpx2",
    "pyarrow", "datasets", "jinja2", "_csv", "struct", "sqlalchemy",
})  # fmt: skip
"""Libraries that raise exceptions of their own for a file or a value that they cannot read."""
OF_A_DISK = re.compile(r"os error|PytorchStreamWriter|inline_container|iostream|No space left")
"""In the messages of safetensors' and torch's errors when a file cannot be written."""
OF_A_FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def is_wrong_input(error: Exception) -> bool:
    """Tell whether a library raises such an error for input that it cannot read.

    A full disk and used up memory are the machine's errors; NotImplementedError and others are
    ours. tokenizers raises plain `Exception`.
    """
    if isinstance(error, OSError):
        return error.errno not in OF_A_FULL_DISK
    if is_disk_error(error):
        return False
    known = isinstance(error, (*RECORD_ERRORS, EOFError, RecursionError)) or type(error) is Exception
    return known or type(error).__module__.partition(".")[0] in LIBRARIES


def is_disk_error(error: BaseException) -> bool:
    """Tell whether safetensors or torch raised an error because a file could not be written."""
    return OF_A_DISK.search(str(error)) is not None


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_wrong_input(error):
            raise
        raise InputError(f"{what}: {reason_of(error)}") from error


def reading(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Return a context that turns an error of reading into a line with the file and the reason."""
    return _naming(f"{os.fspath(path)} cannot be read")


def option(name: str) -> AbstractContextManager[None]:
    """Return a context that turns an error of using an option into a line with name and reason."""
    return _naming(f"{name} cannot be used")


def reason_of(error: Exception) -> str:
    if type(error) is FileNotFoundError:  # the hub's errors derive from it and say more
        return "it does not exist"
    if isinstance(error, UnicodeDecodeError):
        return "it must be text in UTF-8; convert it, for example with iconv -f latin1 -t utf-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return " ".join(str(error).split())[:300] or type(error).__name__


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
    """Yield an error and those it was raised from, each once: an error can be its own cause."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is each for each in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__
