"""A PostgreSQL server of the tests' own: on a unix socket in a temporary folder, run by a user who is not root."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret-of-the-tests"
REQUIRED = "SHEARS_REQUIRE_POSTGRESQL"  # set by .ci/run: then a machine without PostgreSQL is a failure, not a skip
SETTINGS = "-c listen_addresses= -c fsync=off -c shared_buffers=16MB -c max_connections=30"
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian's, which is not on the path, or another one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    found = shutil.which("initdb")
    return debian[0].parent if debian else Path(found).parent if found else None


class Server:
    """A running server."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder, self._binaries = folder, binaries

    def url(self, password: str | None) -> str:
        """Where it is found."""
        user = "postgres" if password is None else f"postgres:{password}"
        return f"postgresql://{user}@/postgres?host={self._folder}"

    def _run(self, *command: str) -> None:
        done = subprocess.run([*AS_POSTGRES, str(self._binaries / command[0]), *command[1:]], check=False, timeout=60,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              cwd=self._folder)  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()

    def control(self, *command: str) -> None:
        """`pg_ctl start`, `stop`, `restart`."""
        data, log = self._folder / "data", self._folder / "log"
        settings = f"{SETTINGS} -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "-D", str(data), "-l", str(log), "-w", "-s", "-o", settings, *command)

    def end(self) -> None:
        """Stop it, if a test that failed has not left it stopped."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.control("stop", "-m", "immediate")

    def make(self) -> None:
        """Make an empty cluster; everyone needs the password."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if AS_POSTGRES:
            shutil.chown(self._folder, "postgres")
            shutil.chown(secret, "postgres")
        options = "-U postgres -A scram-sha-256 -N -E UTF8 --locale=C"
        self._run("initdb", "-D", str(self._folder / "data"), "--pwfile", str(secret), *options.split())


@contextmanager
def running_server() -> Iterator[Server]:
    """A server for the block; the test is skipped, with the reason, where there is no PostgreSQL."""
    binaries = programs()
    if binaries is None or (AS_POSTGRES and shutil.which("runuser") is None):
        reason = "PostgreSQL is not there (apt-get install postgresql), or root cannot run it as postgres"
        assert REQUIRED not in os.environ, reason
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="shears-postgres-", dir="/tmp"))  # a socket's path is short, and postgres's
    server = Server(folder, binaries)
    try:
        server.make()
        server.control("start")
        try:
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
