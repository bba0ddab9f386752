"""The one exception a user can cause: what must hold, what came, what to do, in one line."""

RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of a record without a key, or with another thing in its place."""


class InputError(ValueError):
    """What the user gave cannot be used; the command line prints it and exits with code 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of what another library's error says, its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
