"""Calls on a storage that may be away for a while: tried again, with one line in the log, until time is up."""

import errno
import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import ParamSpec, TypeVar

import optuna
import sqlalchemy

from shears.config.fields import hide_passwords
from shears.errors import first_line

logger = logging.getLogger(__name__)
Given = ParamSpec("Given")
Result = TypeVar("Result")
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds; doubled from one to the other
ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, OSError)
PASSING = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.InternalError,
           sqlalchemy.exc.TimeoutError, sqlalchemy.exc.PendingRollbackError)  # fmt: skip
CLASHES = ("locked", "deadlock", "Deadlock", "serialize", "restarting transaction")  # pass at once: not worth a line
PASSING_ERRNO = frozenset(
    {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOTCONN}
)  # of a network file system


def reason_of(error: BaseException) -> str:
    """Return in one line, without passwords, why a storage failed: what the database said."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
    return hide_passwords(first_line(cause or error))


def may_pass(error: BaseException) -> bool:
    """Tell whether what a storage raised may pass by itself: a server that restarts, a lock, a file system away."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return error.__cause__ is not None and may_pass(error.__cause__)
    if isinstance(error, OSError):
        return error.errno in PASSING_ERRNO
    if isinstance(error, sqlalchemy.exc.DBAPIError) and type(error.orig).__module__ == "sqlite3":
        return "locked" in str(error)
    lost = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, PASSING)


class Patience:
    """Calls operations of one storage; used by a worker's thread and by the one that gives its signs of life.

    `timeout` is in seconds. `outages` counts the times that the storage was found away.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._name, self._timeout = hide_passwords(name), timeout
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self.outages = 0

    def __call__(self, operation: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Return what the operation returns. OSError, in one line, if the storage fails, or for too long."""
        start, wait = time.monotonic(), FIRST_WAIT
        for attempt in count():
            try:
                result = operation(*args, **kwargs)
            except ERRORS as error:
                self._check(error, start)
                if attempt or not any(word in reason_of(error) for word in CLASHES):
                    self._away(reason_of(error))
            else:
                self._back()
                return result
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("not reached")

    def once(self, operation: Callable[Given, object], *args: Given.args, **kwargs: Given.kwargs) -> None:
        """Try an operation that does not matter so much that it would be worth waiting for."""
        try:
            operation(*args, **kwargs)
        except ERRORS as error:
            if may_pass(error):
                self._away(reason_of(error))
        else:
            self._back()

    def _check(self, error: BaseException, start: float) -> None:
        if not may_pass(error):
            raise OSError(f"the storage {self._name} failed: {reason_of(error)}") from None
        if time.monotonic() - start >= self._timeout:
            raise OSError(
                f"the storage {self._name} has not answered for {self._timeout:.0f} s: {reason_of(error)}; "
                "start again with --resume when it does"
            ) from None

    def _away(self, reason: str) -> None:
        with self._lock:
            if self._away_since is None:
                self._away_since = time.monotonic()
                self.outages += 1
                logger.warning("the storage %s does not answer, trying again for up to %.0f s: %s",
                               self._name, self._timeout, reason)  # fmt: skip

    def _back(self) -> None:
        with self._lock:
            if self._away_since is not None:
                logger.info("the storage answers again after %.0f s", time.monotonic() - self._away_since)
                self._away_since = None
