"""The exception for wrong input; its messages say what must hold, what came and what to do, in one line each."""

RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Exceptions of code that reads a record with a missing key or a value of another type."""


class InputError(ValueError):
    """The input cannot be used; the command line prints each message in a line and exits with code 2."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


def first_line(error: BaseException) -> str:
    """Return the first line of the message of another library's error, or its class name for an empty message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
