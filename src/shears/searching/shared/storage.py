"""The storages that can hold a study: memory, a SQLite file, PostgreSQL, MySQL, or a journal file for NFS."""

import logging
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from shears.config.fields import hide_passwords
from shears.errors import InputError, first_line

logger = logging.getLogger(__name__)
JOURNAL = "journal://"
FIRST_BYTES = b'{"op_code":'  # of every line of Optuna's journal
PASSWORD = "SHEARS_STORAGE_PASSWORD"  # the environment variable that completes a URL without one
HIDDEN = "***"  # what records show of a password
DRIVERS: Mapping[str, str] = MappingProxyType(
    {
        "postgres": "postgresql+psycopg",
        "postgresql": "postgresql+psycopg",
        "mysql": "mysql+pymysql",
        "mariadb": "mariadb+pymysql",
    }
)
EXTRAS: Mapping[str, str] = MappingProxyType({"psycopg": "postgresql", "pymysql": "mysql"})
TIMEOUTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(  # seconds: a server that is gone is noticed
    {
        "psycopg": {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3},
        "pymysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
        "pysqlite": {"timeout": 60},
    }
)
ATTEMPTS = 6  # workers that start at the same moment make the same tables
MADE_BY_ANOTHER = ("exists", "duplicate", "Duplicate", "UNIQUE", "locked", "restarting transaction")


@contextmanager
def open_storage(url: str | None) -> Iterator[BaseStorage]:
    """Yield the storage of a URL (None: this process's memory); its connections are closed afterwards.

    A password can come from the environment: SHEARS_STORAGE_PASSWORD, or what the database's own client reads.
    InputError, without the password, if the storage cannot be opened.
    """
    if url is None:
        yield InMemoryStorage()
    elif url.startswith(JOURNAL):
        yield _journal(url)
    else:
        storage = _database(url)
        try:
            yield get_storage(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _journal(url: str) -> JournalStorage:
    path = Path(url.removeprefix(JOURNAL))
    if not path.is_absolute() or not path.parent.is_dir():
        raise InputError(f"a journal must be {JOURNAL}/ABSOLUTE/FILE in a folder that is there, got {url}")
    try:
        _refuse_foreign(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_MendingLock(str(path))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # of foreign lines
        raise InputError(f"storage must be a journal file that can be opened, got {url}: {first_line(error)}") from None


def _refuse_foreign(path: Path) -> None:
    """Raise ValueError for a file that is no journal, be its first line half written: the lock would cut lines off."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        begin = file.read(len(FIRST_BYTES))
        if begin != FIRST_BYTES[: len(begin)]:
            raise ValueError("it is a file of something else")


class _MendingLock(JournalFileSymlinkLock):  # type: ignore[misc]  # optuna is not typed for us
    """Optuna's lock for NFS; whoever gets it cuts off a line that a killed process left half written."""

    def acquire(self) -> bool:
        """Wait for the lock; True."""
        acquired = super().acquire()
        with open(self._lock_target_file, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end and not _ends_line(file, end):
                end -= 1
            if end < size:
                file.truncate(end)
        return bool(acquired)


def _ends_line(file: Any, end: int) -> bool:
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")


def _database(url: str) -> RDBStorage:
    """Return the storage of a database; what fails because another worker makes its tables is tried again."""
    secrets = [url]
    try:
        full = _completed(sqlalchemy.make_url(url))
        secrets.append(full.password or "")
        for attempt in range(1, ATTEMPTS):
            try:
                return _tuned(full)
            except sqlalchemy.exc.DBAPIError as error:
                if not any(word in str(error) for word in MADE_BY_ANOTHER):
                    raise
            time.sleep(0.2 * attempt * (1 + random.random()))
        return _tuned(full)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError) as error:
        reason = _advised(first_line(error), error)
        raise InputError(
            f"storage must be a database URL that can be opened, got {hide_passwords(url)}: {without(reason, *secrets)}"
        ) from None


def _completed(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """Return the URL with the driver we install and the password of the environment."""
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.password not in (None, HIDDEN):
        return url
    # without one, libpq goes on to PGPASSWORD, ~/.pgpass and PGSERVICE, PyMySQL to read_default_file
    return sqlalchemy.URL.create(
        url.drivername, url.username, os.environ.get(PASSWORD) if url.host or url.username else None,
        url.host, url.port, url.database, url.query,
    )  # fmt: skip


def _tuned(url: sqlalchemy.URL) -> RDBStorage:
    driver = url.get_driver_name()
    arguments = {name: value for name, value in TIMEOUTS.get(driver, {}).items() if name not in url.query}
    is_file = url.get_backend_name() == "sqlite"
    pool = {} if is_file else {"pool_pre_ping": True}
    storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"connect_args": arguments, **pool})
    if is_file and url.database:  # a file, not memory
        sqlalchemy.event.listen(storage.engine, "connect", make_fast)
        sqlalchemy.event.listen(storage.engine, "begin", _begin)
        storage.engine.dispose()  # connections made so far lack the settings
    return storage


def make_fast(connection: Any, _record: object) -> None:
    """A write-ahead log without fsync per commit: 12 times faster, safe against kill -9, consistent on power loss."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.isolation_level = None  # transactions are begun by `_begin`


def _begin(connection: sqlalchemy.Connection) -> None:
    """Lock the file for the whole transaction, as SELECT FOR UPDATE, which SQLite lacks, locks a row elsewhere."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _advised(reason: str, error: Exception) -> str:
    """Return the reason, and what to install where a driver is missing."""
    if not isinstance(error, ImportError):
        return reason
    missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None)
    extra = EXTRAS.get(str(missing))
    return f"{reason}; pip install 'shears[{extra}]'" if extra else reason


def without(text: str, *secrets: str) -> str:
    """Return a text of another library without the passwords of URLs, and without secrets that are no URL."""
    for secret in secrets:
        if secret and "://" not in secret:
            text = text.replace(secret, HIDDEN)
    return hide_passwords(text)
