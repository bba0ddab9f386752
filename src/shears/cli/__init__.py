"""The command line: words -> recipe -> exactly one stage. The only place that prints."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "critical",  # its errors are raised, and then said in one line
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
INTERRUPTED = 130  # what shells report of a Ctrl-C, and typer makes of it
GOING_ON = {
    "train": "--resume goes on from the last checkpoint",
    "search": "--resume goes on from the last evaluation",
    "run": "the same command goes on from there",
}


class _ConsoleHandler(logging.Handler):
    """Writes log lines to the console of the progress bar, so that neither breaks the other."""

    def emit(self, record: logging.LogRecord) -> None:
        from shears.progress import console

        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def _quieten() -> None:
    """Keep other libraries' bars and notices off the screen; our log lines, of the first process, say what matters."""
    from shears.progress import is_first_process

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    for name in ("lm_eval", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logger = logging.getLogger("shears")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler() if is_first_process() else logging.NullHandler())


def main() -> None:
    """Run the command line and exit: 0 done, 1 the machine failed (disk, permission), 2 the input was wrong.

    130 where it was interrupted by Ctrl-C, be it while libraries are imported.
    """
    try:
        _run()
    except KeyboardInterrupt:
        verb = next((word for word in sys.argv[1:] if word.isalpha()), "")  # behind --threads N
        _fail("; ".join(filter(None, ["stopped", GOING_ON.get(verb)])), INTERRUPTED)


def _run() -> None:
    _quieten()
    from shears.errors import InputError

    usage_error = _click_exception()
    try:
        _check_words(sys.argv[1:])
        code = application()(standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except InputError as error:
        _fail(str(error), 2)
    except usage_error as error:
        if not error.format_message():  # type: ignore[attr-defined]  # no words at all: the help is on the screen
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "shears"
        _fail(f"{error.format_message()} See {path} --help", 2)  # type: ignore[attr-defined]
    except OSError as error:
        _fail(f"the machine said no: {error}", 1)


def _check_words(words: Sequence[str]) -> None:
    """Refuse bytes that are no UTF-8, which no record can hold and no other library opens."""
    from shears.errors import InputError

    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"names and texts must be UTF-8, got {word!a}; rename what it stands for") from None


def application() -> Any:
    """Return the application with all its verbs, in the order of the help."""
    from importlib import import_module

    from shears.cli.app import app

    for name in ("verbs", "chat", "sharing"):
        import_module(f"shears.cli.{name}")
    return app


def _click_exception() -> type[Exception]:
    """Return click's own exception base, which Typer carries inside itself in newer versions."""
    import typer

    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _fail(message: str, code: int) -> None:
    """Exit with one line. What is wrong with the input, all processes of a launcher know, and the first one says."""
    from shears.progress import is_first_process

    if is_first_process() or code == 1:  # a machine fails alone
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
