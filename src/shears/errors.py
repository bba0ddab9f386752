"""The exception for wrong input; its message says what must hold, what came and what to do, in one line."""

DISTRIBUTION = "shears-llm"
"""The name that pip installs; `shears` on PyPI is another project."""

RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Exceptions of code that reads a record with a missing key or a value of another type."""


class InputError(ValueError):
    """The input cannot be used; the command line prints the message and exits with code 2."""


def install_hint(extra: str) -> str:
    """Return the command that installs an optional part of shears, such as serve: the only place that names it."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def first_line(error: BaseException) -> str:
    """Return the first line of the message of another library's error, or its class name for an empty message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
