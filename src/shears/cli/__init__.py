"""The command line: a verb turns its words into one configuration and calls the library once.

Nothing else in shears prints.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "critical",  # its errors are raised as well, and printed as one line
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
VERBS = ("verbs", "chat")  # modules that register them
CONTINUED = ("compress", "evaluate", "heal", "run", "search", "sparsify", "train", "write")  # by the same command


class _ConsoleHandler(logging.Handler):
    """Writes log lines to the console of the progress bar, so that they do not break the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from shears.progress import console

        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run a verb; exit with 0, 1 (disk, memory), 2 (wrong input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    verb = next((word for word in sys.argv[1:] if word.isalpha()), "")
    received = [signal.SIGINT]

    def terminate(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    if verb != "chat":  # where Ctrl-C stops an answer, not the conversation
        signal.signal(signal.SIGTERM, terminate)
    try:
        _quieten()
        _run(verb)
    except KeyboardInterrupt:  # also while libraries are imported
        todo = "; run the same command again to continue" if verb in CONTINUED else ""
        _fail([f"stopped{todo}"], 128 + received[-1])


def _run(verb: str) -> None:
    from shears.errors import InputError, first_line, is_disk_error, memory_error

    try:
        _check_words(sys.argv[1:], verb)
        code = application()(standalone_mode=False) or 0
        if code == 128 + signal.SIGINT:  # what typer makes of an interruption
            raise KeyboardInterrupt
        sys.exit(code)
    except Exception as error:
        if (cause := memory_error(error)) is not None:
            _fail([f"out of memory ({first_line(cause)}); a smaller batch needs less memory"], 1)
        if isinstance(error, InputError):
            _fail(error.messages, 2)
        if isinstance(error, OSError) or is_disk_error(error):
            _fail([f"I/O error: {first_line(error)}"], 1)
        if hasattr(error, "format_message"):  # typer's error of usage
            _fail([f"{error.format_message().rstrip('.')}. See shears {verb} --help".replace("  ", " ")], 2)
        raise


def _quieten() -> None:
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


def _check_words(words: Sequence[str], verb: str) -> None:
    """Raise InputError for bytes that are not UTF-8, and for a verb that needs a single process."""
    from shears.errors import InputError
    from shears.progress import launched

    if launched()[1] > 1 and verb not in ("heal", "train"):
        raise InputError(f"only heal and train run on several processes, got {verb}; start it without torchrun")
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"names and texts must be UTF-8, got {word!a}") from None


def application() -> Any:
    from shears.cli.options import app

    for name in VERBS:
        import_module(f"shears.cli.{name}")
    return app


def _fail(messages: Sequence[str], code: int) -> None:
    from shears.progress import is_first_process, visible

    if is_first_process() or code == 1:  # a system error may be one process's
        for message in messages:
            text = visible(" ".join(message.splitlines()))
            print(f"error: {text}", file=sys.stderr)
    sys.exit(code)
