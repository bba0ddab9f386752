"""The one exception a user can cause: what must hold, what came, what to do, in one line."""


class InputError(ValueError):
    """What the user gave cannot be used; the command line prints it and exits with code 2."""
