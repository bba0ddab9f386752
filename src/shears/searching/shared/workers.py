"""A worker among others: its name, its signs of life, and how the others' silence is noticed."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shears.records.artifacts import write_text
from shears.records.folders import WORKER
from shears.searching.shared.claims import Claim

BEATS = 6  # signs of life in the time after which a silent worker is given up


def worker_name(folder: Path) -> str:
    """Return a name that no other worker has, kept in the working folder: who resumes there is the same worker."""
    path = folder / WORKER
    if not path.exists():
        write_text(path, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    return path.read_text(encoding="utf-8")


def forget_name(folder: Path) -> None:
    """Remove the name: the worker has done its work."""
    (folder / WORKER).unlink(missing_ok=True)


class Watch:
    """Finds claims whose worker gives no sign of life, by this process's own clock: no two machines' are compared.

    A sign is a number that changes. `stale_after` and `now` are in seconds.
    """

    def __init__(self, stale_after: float) -> None:
        self._stale_after = stale_after
        self._seen: dict[int, tuple[int, float]] = {}

    def silent(self, claims: Sequence[Claim], now: float) -> list[Claim]:
        """Return those of the claims being evaluated that have not changed for too long."""
        known = self._seen
        self._seen = {
            claim.ident: known[claim.ident] if known.get(claim.ident, (-1, 0.0))[0] == claim.beat else (claim.beat, now)
            for claim in claims
        }
        return [claim for claim in claims if now - self._seen[claim.ident][1] > self._stale_after]

    def forgive(self) -> None:
        """Begin anew: the storage was away, and nobody could give a sign."""
        self._seen = {}


@contextmanager
def heartbeat(beat: Callable[[int], None], stale_after: float) -> Iterator[None]:
    """Call `beat` with 1, 2, ... in a thread of its own, often enough not to be given up, while the block runs."""
    done = threading.Event()

    def run() -> None:
        count = 0
        while not done.wait(stale_after / BEATS):
            count += 1
            beat(count)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def pause(stale_after: float) -> None:
    """Wait a moment for what others evaluate."""
    time.sleep(min(1.0, stale_after / BEATS))
