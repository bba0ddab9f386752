"""A storage that is away for a while is waited for, with one line; one that is broken, or away for too long, is not."""

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

import shears.searching.shared.storage as storage_module
from shears.adapt.space import RankConfig
from shears.searching.shared.claims import Claim, ClaimState, StaleClaims
from shears.searching.shared.storage import RetryingStorage, is_temporary, open_storage, reason_of
from shears.searching.shared.study import StudyLocation, open_study
from tests.searching.formulas import a_plan, make_space


def lost() -> BaseException:
    """What Optuna makes of a server that shuts down."""
    error: BaseException = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("terminating connection\nmore"))
    return error


def broken() -> BaseException:
    return sqlalchemy.exc.ProgrammingError("SELECT", {}, Exception("no such column for me:secret"))


def of_sqlite(text: str) -> BaseException:
    return sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(text))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (lost(), True),
        (broken(), False),
        (of_sqlite("database is locked"), True),
        (of_sqlite("database or disk is full"), False),
        (sqlalchemy.exc.TimeoutError("pool"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (OSError(errno.ENOSPC, "no space left"), False),
        (optuna.exceptions.StorageInternalError("of its own"), False),
    ],
)
def test_which_errors_are_temporary(error: BaseException, passes: bool) -> None:
    assert is_temporary(error) is passes


def test_the_reason_is_the_databases_one_line() -> None:
    assert "terminating connection" in reason_of(lost())
    assert "\n" not in reason_of(lost())


class Failing(optuna.storages.InMemoryStorage):  # type: ignore[misc]  # optuna is not typed for us
    """A storage whose operation fails so many times, then returns how often it was called."""

    def __init__(self, times: int, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.calls = 0
        self._times = times
        self._error = error

    def read(self) -> int:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error()
        return self.calls


def locked() -> BaseException:
    return of_sqlite("database is locked")


def test_a_storage_that_comes_back_is_used_with_one_line_of_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "FIRST_WAIT", 0.001)
    storage = RetryingStorage(Failing(3, lost), "postgresql://me:secret@host/db", 60.0)
    with caplog.at_level(logging.INFO):
        assert storage.read() == 4
    assert storage.outages == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the storage postgresql://me:***@host/db does not answer, trying again for up to 60 s" in caplog.text
    assert "answers again" in caplog.text


def test_two_who_write_at_once_are_not_worth_a_line_unless_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    assert RetryingStorage(Failing(1, locked), "x", 60.0).read() == 2
    assert not caplog.records
    assert RetryingStorage(Failing(2, locked), "x", 60.0).read() == 3
    assert caplog.text.count("does not answer") == 1


def test_time_is_up_with_a_clear_error_that_says_how_to_go_on() -> None:
    with pytest.raises(
        OSError, match=r"me:\*\*\*@host has not answered for 0 s: .*terminating.*; start again with --resume"
    ):
        RetryingStorage(Failing(1000, lost), "mysql://me:secret@host", 0.0).read()


def test_what_does_not_pass_is_not_tried_again() -> None:
    backend = Failing(1, broken)
    with pytest.raises(OSError, match="the storage x failed: .*no such column"):
        RetryingStorage(backend, "x", 60.0).read()
    assert backend.calls == 1


def test_a_heartbeat_is_tried_once_and_the_outage_is_known(caplog: pytest.LogCaptureFixture) -> None:
    backend = Failing(1, lost)
    storage = RetryingStorage(backend, "x", 60.0)
    storage.try_once("read")
    assert backend.calls == 1
    assert storage.outages == 1
    assert storage.read() == 2
    assert caplog.text.count("does not answer") == 1


def test_a_heartbeat_of_a_trial_that_another_worker_ended_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    storage = RetryingStorage(Failing(1, optuna.exceptions.UpdateFinishedTrialError), "x", 60.0)
    storage.try_once("read")
    assert storage.outages == 0
    assert not caplog.records


RANKS = RankConfig({"a": 1})
beats = st.lists(st.tuples(st.floats(0.01, 5.0), st.booleans()), max_size=30)


@given(beats)
def test_a_worker_is_silent_when_its_sign_has_not_changed_for_longer_than_allowed(
    observations: list[tuple[float, bool]],
) -> None:
    stale_claims, now, beat, changed = StaleClaims(10.0), 0.0, 0, 0.0
    for first, (wait, is_alive) in enumerate([(0.0, False), *observations]):
        now += wait
        beat += is_alive
        changed = now if is_alive or first == 0 else changed
        claim = Claim(1, RANKS, ClaimState.RUNNING, "other", beat)
        assert stale_claims.find([claim], now) == ([claim] if now - changed > 10.0 else [])


def test_after_an_outage_everyone_gets_the_whole_time_again() -> None:
    stale_claims, claim = StaleClaims(10.0), Claim(1, RANKS, ClaimState.RUNNING, "other")
    assert stale_claims.find([claim], 0.0) == []
    stale_claims.reset()
    assert stale_claims.find([claim], 100.0) == []
    assert stale_claims.find([claim], 111.0) == [claim]


def test_heartbeats_are_numbered_and_end_with_the_block(tmp_path: Path) -> None:
    space = make_space(1)
    location = StudyLocation(f"journal://{tmp_path}/study.log", worker="me", stale_after=0.06)
    with open_study(space, a_plan(), location) as study, open_storage(location.url) as storage:
        study.claim(space.heuristic(), 1)
        counts = list[int]()
        with study.evaluating():
            while len(set(counts)) < 4:
                [trial] = storage.get_all_trials(0)
                counts.append(trial.system_attrs["shears:beat"])
    assert counts == sorted(counts)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
