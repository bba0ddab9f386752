"""Drawn calls of the command line end soon, say what is wrong in a line, and leave nothing half-written.

SHEARS_FUZZ_SEED draws other calls; a failing one prints its command and its number.
"""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shears.config.resolve import build, stage_values
from shears.records.artifacts import find_record, read_json
from tests.end_to_end.fuzz_cases import CALLS, SETTINGS, Case, commands, draw, make_pool
from tests.processes import Process, command_line

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
SEED = int(os.environ.get("SHEARS_FUZZ_SEED", "50"))
LIMIT = 20.0  # seconds
MEMORY = 8 * 10**9  # bytes that a call may take
STOPPED: dict[int, tuple[int, ...]] = {
    signal.SIGINT: (130, -signal.SIGINT), signal.SIGTERM: (130, 143, -signal.SIGTERM)
}  # fmt: skip
UNEXPLAINED = re.compile(
    r"Traceback|Exception ignored|CancelledError|Input should|validation error|\[type=|pydantic|object at 0x"
)
"""Words of Python and other libraries that are no message of ours."""
Start = Callable[[Path, Case], tuple[int | None, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every call works in."""
    made = tmp_path_factory.mktemp("pool")
    make_pool(made)
    return made


def in_fork(folder: Path, case: Case) -> tuple[int | None, str]:
    """Run a call in a fork of this process."""
    log, begun = folder.with_name("log"), folder.with_name("begun")
    for path in (log, begun):
        path.unlink(missing_ok=True)
    process = command_line(log, folder, *case.words, before=lambda: _surround(folder, case, begun))
    process.until(begun.exists)
    code = _ended(process, case)
    return code, log.read_bytes().decode(errors="replace")


def _surround(folder: Path, case: Case, begun: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    for name, value in {"SHEARS_CACHE": str(folder.with_name("cache")), **case.environment}.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.close(0)
    sys.stdin = None
    if case.stdin is not None:
        sys.stdin = open(case.stdin, encoding="utf-8")  # noqa: SIM115  # it gets the free number 0
    if not case.stdout:
        os.close(1)
        sys.stdout = None
    begun.touch()


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _ended(process: Process, case: Case) -> int | None:
    """Send the signals; return the exit code, None for a call that had to be killed."""
    start = time.monotonic()
    signals = list(case.signals)
    while (code := process.poll()) is None:
        passed = time.monotonic() - start
        if passed > LIMIT + sum(delay for delay, _ in case.signals):
            process.kill()
            return None
        if signals and passed > signals[0][0]:
            process.send_signal(signals.pop(0)[1])
        time.sleep(0.002)
    return code


def in_new_process(folder: Path, case: Case) -> tuple[int | None, str]:
    """Run a call as a shell does."""
    environment = {**os.environ, "SHEARS_CACHE": str(folder.with_name("cache"))}
    changed = {name: value for name, value in case.environment.items() if value is not None}
    environment = {name: value for name, value in environment.items() if name not in case.environment} | changed
    closing = "<&-" * (case.stdin is None) + " >&-" * (not case.stdout)
    log = folder.with_name("log")
    with log.open("wb") as output, (folder / (case.stdin or "text.txt")).open("rb") as given:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "shears", *case.words], cwd=folder,
            stdin=given, stdout=output, stderr=output, env=environment,
        )  # fmt: skip
        for delay, number in case.signals:
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay + 3)  # behind the imports, which no verb can guard
            process.send_signal(number)
        try:
            code: int | None = process.wait(2 * LIMIT)  # imports take seconds of two cores that others use
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    return code, log.read_bytes().decode(errors="replace")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path of a folder with its size and time."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_size, 0 if path.is_dir() else state.st_mtime_ns)
    return found


def faults(case: Case, code: int | None, printed: str, new: set[str], changed: set[str]) -> list[str]:
    """Return what is wrong with the end of a call."""
    if code is None:
        return ["hangs"]
    sent = {number for _, number in case.signals}
    ends = {0, 1, 2, *(end for number in sent for end in STOPPED[number])}
    unexplained = UNEXPLAINED.search(printed)
    num_errors = sum(line.startswith("error: ") for line in printed.splitlines())
    most = 1 if case.hostile <= 1 else 9
    taken = ", ".join(repr(case.words[place])[:40] for place in sorted(case.doomed))
    wrong = {
        f"exit code {code}": code not in ends,
        f"prints {unexplained and unexplained[0]!r}": unexplained is not None,
        f"{num_errors} error lines": code in (1, 2) and not 1 <= num_errors <= most,
        "an error and exit code 0": code == 0 and num_errors > 0,
        f"takes {taken}": code == 0 and bool(taken),
        f"changes {', '.join(sorted(changed)[:3])}": bool(changed),
    }
    return [what for what, is_so in wrong.items() if is_so] + _left(code, bool(sent), printed, new)


def _left(code: int, is_stopped: bool, printed: str, new: set[str]) -> list[str]:
    """Return what a call should not have left."""
    tops = {Path(name).parts[0] for name in new}
    partial = {name for name in tops if name.endswith((".partial", ".tmp"))}
    if code == 0:
        return [f"leaves {name}" for name in partial]
    kept = {name for name in tops if name.endswith(".teacher")}  # a cache beside the data
    if is_stopped:  # also at the last moment, when the output is whole
        return []
    says_how = any(name in printed for name in partial) or "continue" in printed
    return [f"leaves {name}" for name in tops - kept - (partial if says_how else set())]


def ignored(folder: Path, case: Case) -> list[str]:
    """Return the options of a finished stage that its record lacks, or has with another value."""
    path = find_record(folder / case.words[2]) if "OUT" in CALLS[case.verb].split() else None
    kind = SETTINGS.get(case.verb)
    recorded = read_json(path).get("config") if path is not None else None
    if kind is None or recorded is None:
        return []
    given = commands()[case.verb].make_context(case.verb, case.words[1:]).params
    flags = {name: value for name, value in given.items() if name in kind.model_fields}
    values = stage_values(case.verb, given["config"] and str(folder / given["config"]), given["set_"] or [], flags)
    settings = build(kind, case.verb, values).model_dump(mode="json")
    others = {name: recorded[name] for name in values if name in recorded and recorded[name] != settings[name]}
    return [f"records {name} {value!r} for {settings[name]!r}" for name, value in others.items()]


def run(folder: Path, case: Case, start: Start) -> list[str]:
    """Run a call; return what is wrong, and clean up behind it."""
    before = contents(folder)
    code, printed = start(folder, case)
    after = contents(folder)
    new = after.keys() - before.keys()
    changed = {name for name in before if before[name] != after.get(name) and not (folder / name).is_dir()}
    found = faults(case, code, printed, new, changed) + (ignored(folder, case) if code == 0 else [])
    for name in sorted(new, reverse=True):
        path = folder / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return [f"{'; '.join(found)}\n    {printed[-700:].strip()}"] if found else []


def drawn(number: int) -> Case:
    """Return the call of a number."""
    return draw(random.Random(f"{SEED} {number}"))


def run_all(folder: Path, numbers: range, start: Start) -> None:
    """Run calls; fail with all that is wrong."""
    wrong = []
    for number in numbers:
        case = drawn(number)
        found = [f"{number}: {case}\n  {fault}" for fault in run(folder, case, start)]
        wrong += found
    assert not wrong, "\n".join([f"{len(wrong)} of {len(numbers)} calls, SHEARS_FUZZ_SEED={SEED}", *wrong])


def test_forty_drawn_calls_end_as_they_should(folder: Path) -> None:
    run_all(folder, range(40), in_fork)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_drawn_calls_end_as_they_should(folder: Path) -> None:
    run_all(folder, range(40, 1010), in_fork)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_drawn_calls_end_as_they_should_in_processes_of_their_own(folder: Path) -> None:
    run_all(folder, range(1010, 1060), in_new_process)
