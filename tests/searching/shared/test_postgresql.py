"""Two workers on PostgreSQL: one is killed inside an evaluation, the server is restarted, and nothing is lost."""

import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from shears.searching.shared.storage import open_storage
from shears.searching.shared.study import WITHDRAWN_KEY, WORKER_KEY, SearchStudy
from shears.searching.stage import search
from tests.processes import Process, command_line
from tests.searching.shared.postgres import PASSWORD, Server, running_server

pytest.importorskip("psycopg", reason="pip install 'shears-llm[postgresql]'")
BUDGET = 20
ROOT = Path(__file__).parents[3]
DEADLINE = 120.0
SECONDS = 0.3  # of an evaluation; a tiny model is evaluated in milliseconds, before a test could stop the server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as found:
        yield found


SETTINGS: dict[str, Any] = {
    "strategy": "random", "study": "fault", "max_evaluations": BUDGET, "stale_after": 3.0,
    "device": "cpu", "precision": "fp32",
}  # fmt: skip


def make_evaluations_slow() -> None:
    """In a worker's process: stay inside an evaluation most of the time."""
    evaluating = SearchStudy.evaluating

    @contextmanager
    def slowly(study: SearchStudy) -> Iterator[None]:
        with evaluating(study):
            time.sleep(SECONDS)
            yield

    SearchStudy.evaluating = slowly  # type: ignore[method-assign, assignment]


def start_as_a_user(log: Path, adapter: Path, output: Path, **settings: str) -> Process:
    """Start a worker by the command line; the password is in its environment."""
    given = {**SETTINGS, **settings}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]

    def begin() -> None:
        os.environ["SHEARS_STORAGE_PASSWORD"] = PASSWORD
        make_evaluations_slow()

    return command_line(log, ROOT, "search", str(adapter), str(output), "--resume", *options, before=begin)


def search_and_log(log: Path, adapter: Path, output: Path, **settings: str) -> None:
    """A worker by the library."""
    logger = logging.getLogger("shears")  # a fork's, which the command line of another test may have set up
    logger.handlers, logger.propagate = [logging.FileHandler(log)], False
    logger.setLevel(logging.INFO)
    make_evaluations_slow()
    search(adapter, output, resume=True, **{**SETTINGS, **settings})


def trials(url: str) -> list[FrozenTrial]:
    """What is in the study now."""
    with open_storage(url) as storage:
        try:
            found: list[FrozenTrial] = storage.get_all_trials(storage.get_study_id_from_name("fault"))
        except KeyError:
            return []
        return found


def wait_for(reached: Callable[[], bool], *workers: Process) -> None:
    """Wait for a moment; fail if a worker ends before it."""
    end = time.monotonic() + DEADLINE
    while not reached():
        for worker in workers:
            assert worker.poll() is None, f"ended before the moment: {worker.printed()}"
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.05)


def num_complete(url: str) -> int:
    return sum(trial.state is TrialState.COMPLETE for trial in trials(url))


def num_at_work(url: str) -> int:
    """How many workers have evaluated something."""
    return len({t.system_attrs[WORKER_KEY] for t in trials(url) if t.state is TrialState.COMPLETE})


def is_frozen_inside_an_evaluation(worker: Process, name: str, url: str) -> bool:
    """Stop the worker; let it go on unless it was the first to claim a configuration and has not finished it."""
    worker.send_signal(signal.SIGSTOP)
    first: dict[str, FrozenTrial] = {}
    for trial in trials(url):
        first.setdefault(str(sorted(trial.params.items())), trial)
    if any(t.state is TrialState.RUNNING and t.system_attrs[WORKER_KEY] == name for t in first.values()):
        return True
    worker.send_signal(signal.SIGCONT)
    return False


def result_of(output: Path) -> dict[str, Any]:
    """What a worker ended with; nothing else is left in its folder."""
    assert sorted(path.name for path in output.iterdir()) == ["result.json"]
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def check_study(found: list[FrozenTrial], killed: str) -> None:
    """Every configuration once, and what the dead worker had begun is among them."""
    done = Counter(tuple(sorted(t.params.items())) for t in found if t.state is TrialState.COMPLETE)
    lost = [t for t in found if t.state is TrialState.FAIL and WITHDRAWN_KEY not in t.system_attrs]
    assert len(done) == BUDGET
    assert set(done.values()) == {1}
    assert [t.system_attrs[WORKER_KEY] for t in lost] == [killed]
    assert tuple(sorted(lost[0].params.items())) in done
    assert {t.state for t in found} == {TrialState.COMPLETE, TrialState.FAIL}


def test_one_worker_killed_and_the_server_restarted_nothing_is_lost_and_nothing_doubled(
    server: Server, super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    open_url, secret_url = server.url(None), server.url(PASSWORD)
    first, second, log = tmp_path / "first", tmp_path / "second", tmp_path / "log"
    given = (log, super_adapter, first)
    other = start_as_a_user(tmp_path / "other", super_adapter, second, data=validation, storage=open_url)
    wait_for(lambda: num_at_work(secret_url) == 1, other)
    killed = Process(log, search_and_log, *given, data=validation, storage=secret_url)
    wait_for(lambda: num_at_work(secret_url) == 2, killed, other)
    server.control("stop", "-m", "fast")
    wait_for(lambda: "does not answer, trying again for up to 15 s" in log.read_text(), killed, other)
    server.control("start")
    before = num_complete(secret_url)
    wait_for(lambda: num_complete(secret_url) >= before + 3, killed, other)
    name = (tmp_path / "first.partial" / ".worker").read_text()
    wait_for(lambda: is_frozen_inside_an_evaluation(killed, name, secret_url), other)
    killed.kill()
    code = other.wait()
    printed = other.printed()
    assert code == 0, printed
    assert f"worker {name} gave no sign of life for 3 s; another worker evaluates its configuration" in printed
    assert Process(log, search_and_log, *given, data=validation, storage=secret_url).wait() == 0, log.read_text()

    check_study(trials(secret_url), name)
    result, resumed = result_of(second), result_of(first)
    assert len(result["evaluations"]) == BUDGET
    storages = [each["config"].pop("storage") for each in (result, resumed)]
    assert result == resumed
    assert storages == [open_url, secret_url.replace(PASSWORD, "***")]
    for text in (printed, log.read_text(), *(path.read_text() for path in tmp_path.rglob("*.json"))):
        assert PASSWORD not in text
        assert "Traceback" not in text
