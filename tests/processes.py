"""Real second processes that need not import everything again: forks of the test's own."""

import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import shears
from shears.cli import main
from tests import checking

DEADLINE = 300.0
READY = [getattr(shears, name) for name in shears.__all__]  # what a fork finds imported


def until(true: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until something holds; fail at the deadline, in seconds."""
    end = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Process:
    """A fork that calls a function and exits with 0, or with 1 and the traceback; all it prints goes to a file."""

    def __init__(self, log: Path, function: Callable[..., object], *arguments: object, **keywords: object) -> None:
        self._log = log
        self._code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(log, lambda: function(*arguments, **keywords))

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, such as SIGSTOP."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something holds, looking often; fail if the process ends before."""
        end = time.monotonic() + DEADLINE
        while not true():
            assert self.poll() is None, f"ended before the moment: {self.printed()}"
            assert time.monotonic() < end, "the moment did not come"
            time.sleep(0.001)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        end = time.monotonic() + DEADLINE
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"did not end: {self.printed()}"
            time.sleep(0.01)
        return code

    def printed(self) -> str:
        """All it printed so far."""
        return self._log.read_text() if self._log.exists() else ""


def command_line(log: Path, folder: Path, *words: str, before: Callable[[], object] = lambda: None) -> Process:
    """Start `shears WORDS` in a folder; `before` is called in the process."""

    def call() -> None:
        sys.argv = ["shears", *words]
        main()

    return forked(log, folder, call, before)


def forked(log: Path, folder: Path, function: Callable[[], object], before: Callable[[], object]) -> Process:
    """Call `before` and a function in a folder, the chances as new as those of a process that imports everything."""

    def call() -> None:
        os.chdir(folder)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        random.seed()
        np.random.seed()
        torch.seed()
        logging.getLogger("shears").handlers.clear()  # those of a command that ran here before
        before()
        function()

    return Process(log, call)


def _become(log: Path, call: Callable[[], object]) -> None:
    """In the child: call and exit, without anything of pytest."""
    code = 1
    checking.end()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        if sys.exc_info()[0]:
            os.write(2, traceback.format_exc().encode())
        os._exit(code)
