"""The storages that can hold a study: memory, SQLite, PostgreSQL, MySQL, or a journal file for NFS.

Optuna implements all of them. Added here: URLs without drivers and passwords, a SQLite that is safe
for several workers, detection of a lost server, repair of torn journal lines, and retries.
"""

import errno
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import exc

from shears.adapt.space import SearchSpace
from shears.config.fields import hide_passwords
from shears.errors import InputError, first_line, install_hint
from shears.records.journal import cut_torn_line

logger = logging.getLogger(__name__)
JOURNAL_URL = "journal://"
FIRST_BYTES = b'{"op_code":'  # of every line of Optuna's journal
PASSWORD = "SHEARS_STORAGE_PASSWORD"  # the environment variable that completes a URL without one
HIDDEN_PASSWORD = "***"  # stands for a password in records
POSTGRESQL = "postgresql+psycopg"
MYSQL = "mysql+pymysql"
DRIVERS: Mapping[str, str] = {
    "postgres": POSTGRESQL, "postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL,
}  # fmt: skip
EXTRAS: Mapping[str, str] = {"psycopg": "postgresql", "pymysql": "mysql"}
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
TIMEOUTS: Mapping[str, Mapping[str, Any]] = {  # seconds after which a lost server is noticed
    "psycopg": {"connect_timeout": 10, **KEEPALIVE},
    "pymysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
    "pysqlite": {"timeout": 60},
}
ATTEMPTS = 6  # to make the tables: workers that start at the same moment make the same ones
MADE_BY_ANOTHER = ("exists", "duplicate", "Duplicate", "UNIQUE", "locked", "restarting transaction")
FIRST_WAIT = 0.1  # seconds before the first retry, doubled up to
LONGEST_WAIT = 10.0
STORAGE_ERRORS = (StorageInternalError, exc.SQLAlchemyError, OSError)
TEMPORARY = (
    exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError,
    exc.PendingRollbackError,
)  # fmt: skip
TEMPORARY_ERRNO = (  # a network file system that is away
    errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR,
    errno.ENOTCONN,
)  # fmt: skip


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own log lines off the screen."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """Return the space as Optuna has it: a categorical parameter of ranks for every group."""
    return {group: CategoricalDistribution(list(ranks)) for group, ranks in space.ranks.items()}


@contextmanager
def open_storage(url: str | None) -> Iterator[BaseStorage]:
    """Yield the storage of a URL (None: in memory); close its connections afterwards.

    A password can come from the environment: SHEARS_STORAGE_PASSWORD, or what the database's own
    client reads. InputError, without the password, if the storage cannot be opened.
    """
    if url is None:
        yield InMemoryStorage()
    elif url.startswith(JOURNAL_URL):
        yield _journal(url)
    else:
        storage = _database(url)
        try:
            yield get_storage(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _journal(url: str) -> JournalStorage:
    path = Path(url.removeprefix(JOURNAL_URL))
    if not path.is_absolute() or not path.parent.is_dir():
        raise InputError(f"a journal must be {JOURNAL_URL}/ABSOLUTE/FILE in an existing folder, got {url}")
    try:
        # before there is a lock, which would cut lines off a file of something else
        with suppress(FileNotFoundError), open(path, "rb") as file:
            first = file.read(len(FIRST_BYTES))
            if first != FIRST_BYTES[: len(first)]:  # a torn first line will do
                raise ValueError("it is not a journal")
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_RepairingLock(str(path))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        # most of them are of lines that are JSON and not Optuna's
        reason = first_line(error)
        raise InputError(f"storage must be a journal file that can be opened, got {url}: {reason}") from None


class _RepairingLock(JournalFileSymlinkLock):  # type: ignore[misc]  # optuna is not typed for us
    """Optuna's lock for NFS; its next holder cuts off a line that a killed worker left torn."""

    def acquire(self) -> bool:
        """Wait for the lock and return True."""
        acquired = super().acquire()
        cut_torn_line(Path(self._lock_target_file))
        return bool(acquired)


def _database(url: str) -> RDBStorage:
    """Return the storage of a database; try again while another worker makes its tables."""
    secrets = [url]
    try:
        full = _completed(sqlalchemy.make_url(url))
        secrets.append(full.password or "")
        for attempt in range(1, ATTEMPTS):
            try:
                return _tuned(full)
            except exc.DBAPIError as error:
                if not any(word in str(error) for word in MADE_BY_ANOTHER):
                    raise
            time.sleep(0.2 * attempt * (1 + random.random()))
        return _tuned(full)
    except (exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError) as error:
        reason = without(first_line(error), *secrets)
        missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None)
        extra = EXTRAS.get(str(missing)) if isinstance(error, ImportError) else None
        advice = f"; {install_hint(extra)}" if extra else ""
        raise InputError(
            f"storage must be a database URL that can be opened, got {hide_passwords(url)}: {reason}{advice}"
        ) from None


def _completed(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """Return the URL with our extras' driver and the password of the environment."""
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.password not in (None, HIDDEN_PASSWORD):
        return url
    # without one, libpq goes on to PGPASSWORD, ~/.pgpass and PGSERVICE, PyMySQL to read_default_file
    password = os.environ.get(PASSWORD) if url.host or url.username else None
    return sqlalchemy.URL.create(url.drivername, url.username, password, url.host, url.port, url.database, url.query)


def _tuned(url: sqlalchemy.URL) -> RDBStorage:
    timeouts = TIMEOUTS.get(url.get_driver_name(), {})
    arguments = {name: value for name, value in timeouts.items() if name not in url.query}
    kwargs = {"connect_args": arguments, "pool_pre_ping": True}
    storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=kwargs)
    if url.get_backend_name() == "sqlite" and url.database:  # a file, not memory
        sqlalchemy.event.listen(storage.engine, "connect", make_fast)
        sqlalchemy.event.listen(storage.engine, "begin", _begin)
        storage.engine.dispose()  # connections made so far lack the settings
    return storage


def make_fast(connection: Any, _record: object) -> None:
    """Set a write-ahead log without fsync per commit: 12 times as fast, and safe on kill -9.

    A loss of power may lose commits, but leaves the file consistent.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.isolation_level = None  # transactions are begun by `_begin`


def _begin(connection: sqlalchemy.Connection) -> None:
    """Lock the file for a whole transaction, because SQLite has no SELECT FOR UPDATE."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def without(text: str, *secrets: str) -> str:
    """Return a text without the passwords of URLs, and without those secrets that are not URLs."""
    for secret in secrets:
        if secret and "://" not in secret:
            text = text.replace(secret, HIDDEN_PASSWORD)
    return hide_passwords(text)


def reason_of(error: BaseException) -> str:
    """Return in one line, without passwords, why a storage failed."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else None
    return hide_passwords(first_line(cause or error))


def is_temporary(error: BaseException) -> bool:
    """Tell whether an error may pass by itself, such as a lock or a server that restarts."""
    if isinstance(error, StorageInternalError):
        return error.__cause__ is not None and is_temporary(error.__cause__)
    if isinstance(error, OSError):
        return error.errno in TEMPORARY_ERRNO
    if isinstance(error, exc.DBAPIError) and type(error.orig).__module__ == "sqlite3":
        return "locked" in str(error)
    is_lost_connection = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    return is_lost_connection or isinstance(error, TEMPORARY)


class RetryingStorage:
    """A storage whose operations are retried while it does not answer; safe for threads.

    `timeout` is in seconds. `outages` counts how often the storage did not answer.
    """

    def __init__(self, storage: BaseStorage, name: str, timeout: float) -> None:
        self.outages = 0
        self._storage = storage
        self._name = hide_passwords(name)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        """Return an operation of the storage that is retried; OSError if it fails for good."""
        return partial(self._retry, getattr(self._storage, operation))

    def _retry(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        for attempt in itertools.count():
            try:
                result = call(*args, **kwargs)
            except STORAGE_ERRORS as error:
                self._raise_if_final(error, deadline)
                if attempt:  # a clash of two workers is over by the second attempt
                    self._set_away(error)
            else:
                self._set_back()
                return result
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
        raise AssertionError("not reached")

    def _raise_if_final(self, error: BaseException, deadline: float) -> None:
        if not is_temporary(error):
            raise OSError(f"the storage {self._name} failed: {reason_of(error)}") from None
        if time.monotonic() >= deadline:
            raise OSError(
                f"the storage {self._name} has not answered for {self._timeout:.0f} s: {reason_of(error)}; "
                "start again with --resume when it does"
            ) from None

    def try_once(self, operation: str, *args: Any) -> None:
        """Try an operation that is not worth waiting for, on a trial that may have ended."""
        try:
            getattr(self._storage, operation)(*args)
            self._set_back()
        except UpdateFinishedTrialError:
            pass
        except STORAGE_ERRORS as error:
            if is_temporary(error):
                self._set_away(error)

    def _set_away(self, error: BaseException) -> None:
        with self._lock:
            if self._away_since is None:
                self._away_since = time.monotonic()
                self.outages += 1
                logger.warning(
                    "the storage %s does not answer, trying again for up to %.0f s: %s",
                    self._name, self._timeout, reason_of(error),
                )  # fmt: skip

    def _set_back(self) -> None:
        with self._lock:
            if self._away_since is not None:
                logger.info("the storage answers again after %.0f s", time.monotonic() - self._away_since)
                self._away_since = None
