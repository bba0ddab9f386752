"""The command line: each verb turns its words into one configuration and one stage. Nothing else in shears prints."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
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
INTERRUPTED = 130  # exit code of shells and of typer for Ctrl-C
HOW_TO_CONTINUE = {
    "heal": "--resume continues from the last checkpoint",
    "train": "--resume continues from the last checkpoint",
    "search": "--resume continues from the last evaluation",
    "compress": "the same command continues from there",
    "write": "the same command continues from there",
    "run": "the same command continues from there",
}


class _ConsoleHandler(logging.Handler):
    """Writes log lines to the console of the progress bar, so that they do not break the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from shears.progress import console

        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def _quieten() -> None:
    """Silence the bars and notices of other libraries; log our own lines, of the first process only."""
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
    """Run the command line and exit: 0 success, 1 system error (disk, memory), 2 wrong input, 130 Ctrl-C."""
    try:
        _run()
    except KeyboardInterrupt:  # also while libraries are imported
        _fail("; ".join(filter(None, ["stopped", HOW_TO_CONTINUE.get(_verb())])), INTERRUPTED)


def _verb() -> str:
    """Return the verb of the command line, behind `--threads N`; empty if there is none."""
    return next((word for word in sys.argv[1:] if word.isalpha()), "")


def _run() -> None:
    _quieten()
    from shears.cli.parsing import USAGE_ERROR, message_of, with_help
    from shears.errors import InputError

    try:
        _check_words(sys.argv[1:])
        code = application()(standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except InputError as error:
        _fail_for_memory(error)
        _fail(error.messages, 2)
    except USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "shears"
        _fail(with_help(message_of(error), path), 2)
    except OSError as error:
        _fail(f"I/O error: {error}", 1)
    except (MemoryError, RuntimeError) as error:  # torch's errors of allocations are RuntimeErrors
        _fail_for_memory(error)
        raise


def _fail_for_memory(error: BaseException) -> None:
    """Exit with one line if memory is used up, also where a library's error was raised from that."""
    from shears.cli.memory import memory_line
    from shears.errors import memory_error

    cause = memory_error(error)
    if cause is not None:
        stage = next(iter(getattr(error, "__notes__", [])), None) if _verb() == "run" else None
        _fail(memory_line(cause, _verb(), stage, sys.argv[1:]), 1)


def _check_words(words: Sequence[str]) -> None:
    """Raise InputError for bytes that are not UTF-8, which records cannot hold, and for several processes of a verb.

    Only heal and train may be started by a launcher such as torchrun.
    """
    from shears.errors import InputError

    processes = os.environ.get("WORLD_SIZE", "1")
    if _verb() not in ("heal", "train", "") and processes != "1":
        raise InputError(
            f"only heal and train run on several processes, got {_verb()} on {processes}; start it without a launcher"
        )
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"names and texts must be UTF-8, got {word!a}; rename the file or change the text"
            ) from None


def application() -> Any:
    """Return the application with all its verbs, in the order of the help."""
    from importlib import import_module

    from shears.cli.help import Verb
    from shears.cli.options import app

    for name in ("init", "data", "verbs", "chat", "sharing"):
        import_module(f"shears.cli.{name}")
    for verb in app.registered_commands:
        verb.cls = Verb
    return app


def _fail(message: str | Sequence[str], code: int) -> None:
    """Exit with a line for each message. Wrong input affects all processes of a launcher: the first one prints it."""
    from shears.progress import is_first_process, visible

    if is_first_process() or code == 1:  # a system error may affect one process only
        for each in [message] if isinstance(message, str) else message:
            print(f"error: {visible(' '.join(each.split()))}", file=sys.stderr)
    sys.exit(code)
