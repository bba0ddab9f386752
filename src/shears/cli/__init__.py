"""The command line: a verb turns its words into one configuration and calls the library once.

Nothing else in shears prints.
"""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shears.errors import Interrupted

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
MANY_STAGES = ("compress", "run")  # they keep the stages that are finished
HOW_TO_CONTINUE = {
    **dict.fromkeys(("heal", "sparsify", "train"), "--resume finishes it"),
    "search": "--resume continues with the evaluations so far",
    **dict.fromkeys(("compress", "evaluate", "write", "run"), "the same command continues from there"),
}
ADVICE: Mapping[str, tuple[str, ...]] = {
    "write": ("max_new_tokens=128",),
    "sparsify": ("activation_budget=500MB", "sequence_length=256", "num_samples=16"),
    "train": ("micro_batch_size=1", "recompute=blocks", "quantize=nf4"),
    "heal": ("micro_batch_size=1", "sequence_length=256", "precision=bf16"),
    "search": ("batch_size=4", "cache_budget=0", "precision=bf16"),
    "export": ("num_samples=16", "sequence_length=256", "device=cpu"),
    "evaluate": ("batch_size=4", "precision=bf16", "num_beams=1"),
    "generate": ("dtype=bf16", "max_new_tokens=64", "device=cpu"),
    "chat": ("dtype=bf16", "max_new_tokens=64", "device=cpu"),
    "serve": ("dtype=bf16", "max_new_tokens=256", "device=cpu"),
    "bench": ("prompt_tokens=128", "new_tokens=16", "rounds=1"),
}
"""Settings that need less memory, by verb, those that cost least quality first."""


class _ConsoleHandler(logging.Handler):
    """Writes log lines to the console of the progress bar, so that they do not break the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from shears.progress import console

        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; exit with 0, 1 (disk, memory), 2 (wrong input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    try:
        if _verb() != "chat":  # where Ctrl-C stops an answer, not the conversation
            signal.signal(signal.SIGTERM, _terminate)
        _run()
    except KeyboardInterrupt as error:  # also while libraries are imported
        _let_signals_kill()
        from shears.errors import Interrupted

        cause = Interrupted.of(error)
        _fail("; ".join(filter(None, ["stopped", _what_is_kept(cause)])), 128 + cause.number)
    finally:
        _let_signals_kill()


def _let_signals_kill() -> None:
    """Let a further signal kill the process at once: nothing is left to do that it could interrupt."""
    from shears.errors import heard_signals

    for number in heard_signals():
        signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, _: object) -> None:
    from shears.errors import Interrupted

    raise Interrupted(number)


def _what_is_kept(error: "Interrupted") -> str:
    """Return how to go on after an interruption, or that nothing is kept; empty if neither is known."""
    verb = _verb()
    if error.is_kept is False and verb not in MANY_STAGES:
        return "nothing is kept"
    if error.step is not None and verb in ("heal", "train"):
        return f"--resume continues from step {error.step}"
    return HOW_TO_CONTINUE.get(verb, "") if error.is_kept or verb in MANY_STAGES else ""


def _verb() -> str:
    """Return the verb of the command line, behind `--threads N`; empty if there is none."""
    return next((word for word in sys.argv[1:] if word.isalpha()), "")


def _run() -> None:
    _open_streams()
    _quieten()
    from shears.cli.parsing import USAGE_ERROR, message_of, with_help
    from shears.errors import InputError

    try:
        _check_words(sys.argv[1:])
        code = application()(standalone_mode=False) or 0
        if isinstance(code, KeyboardInterrupt):
            raise code
        if code == INTERRUPTED:  # before a verb began
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


def _open_streams() -> None:
    """Put an empty file in the place of a standard stream that is closed.

    Else the next file that is opened would take its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _quieten() -> None:
    """Silence other libraries; log our own lines, of the first process only."""
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


def _check_words(words: Sequence[str]) -> None:
    """Raise InputError for bytes that are not UTF-8 and for a verb that supports one process only.

    Records cannot hold such bytes. Only heal and train may be started by a launcher.
    """
    from shears.errors import InputError
    from shears.progress import LAUNCHER, launched

    verb = _verb()
    several = os.environ.get("WORLD_SIZE", LAUNCHER["WORLD_SIZE"])
    if verb not in ("heal", "train", "") and several.isdecimal() and int(several) > 1:
        todo = "start it without a launcher"
        raise InputError(f"only heal and train run on several processes, got {verb} on {several}; {todo}")
    if verb:
        launched()  # checks the launcher's variables
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            bad = f"{word!a}; rename the file or change the text"
            raise InputError(f"names and texts must be UTF-8, got {bad}") from None


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
    """Exit with a line for each message.

    Wrong input affects all processes of a launcher, so only the first one prints it.
    """
    from shears.progress import is_first_process, visible

    if is_first_process() or code == 1:  # a system error may affect one process only
        for each in [message] if isinstance(message, str) else message:
            print(f"error: {visible(' '.join(each.split()))}", file=sys.stderr)
    sys.exit(code)


def _fail_for_memory(error: BaseException) -> None:
    """Exit with one line if an error, or one that it was raised from, is a lack of memory."""
    from shears.errors import memory_error

    cause = memory_error(error)
    if cause is not None:
        stage = next(iter(getattr(error, "__notes__", [])), None) if _verb() == "run" else None
        _fail(_memory_line(str(cause), stage), 1)


def _memory_line(error: str, stage: str | None) -> str:
    """Return how much memory was missing and which settings need less; `stage` is that of a run."""
    section = stage or _verb()
    kind = "GPU memory" if re.search("CUDA|GPU|HIP|MPS|CUBLAS", error) else "memory"
    size = ""
    if match := re.search(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?([KMGT]?i?B|bytes)", error):
        in_bytes = f"{float(match[1]) / 10**9:.1f} GB"  # torch's messages about the CPU
        size = f" ({in_bytes if match[2] == 'bytes' else f'{match[1]} {match[2]}'} more)"
    what = f"{section} needs more {kind} than there is{size}"
    settings = []
    for setting in ADVICE.get(section, ()):
        name, _, value = setting.partition("=")
        flag = f"--{name.replace('_', '-')}" + ("" if value == "true" else f" {value}")
        settings.append(f"--set {stage}.{setting}" if stage else flag)
    given = " ".join(sys.argv[1:])
    useful = [setting for setting in settings if setting not in given]
    if not useful:
        return f"{what}; take a smaller model or a machine with more memory"
    return f"{what}; {' or '.join(filter(None, [', '.join(useful[:-1]), useful[-1]]))} needs less"
