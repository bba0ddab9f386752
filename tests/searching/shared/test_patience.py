"""A storage that is away for a while is waited for, with one line; one that is broken, or away for too long, is not."""

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable

import optuna
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

import shears.searching.shared.patience as patience_module
from shears.adapt.space import RankConfig
from shears.searching.shared.claims import Claim, State
from shears.searching.shared.patience import Patience, may_pass, reason_of
from shears.searching.shared.workers import Watch, heartbeat


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
def test_what_may_pass_by_itself(error: BaseException, passes: bool) -> None:
    assert may_pass(error) is passes


def test_the_reason_is_the_databases_one_line() -> None:
    assert "terminating connection" in reason_of(lost())
    assert "\n" not in reason_of(lost())


def failing(times: int, error: Callable[[], BaseException]) -> Callable[[], int]:
    """Fails so many times, then returns how often it was called."""
    calls = 0

    def operation() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error()
        return calls

    return operation


def test_a_storage_that_comes_back_is_used_with_one_line_of_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "FIRST_WAIT", 0.001)
    patience = Patience("postgresql://me:secret@host/db", 60.0)
    with caplog.at_level(logging.INFO):
        assert patience(failing(3, lost)) == 4
    assert patience.outages == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the storage postgresql://me:***@host/db does not answer, trying again for up to 60 s" in caplog.text
    assert "answers again" in caplog.text


def test_two_who_write_at_once_are_not_worth_a_line_unless_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("x", 60.0)
    assert patience(failing(1, lambda: of_sqlite("database is locked"))) == 2
    assert not caplog.records
    assert patience(failing(2, lambda: of_sqlite("database is locked"))) == 3
    assert caplog.text.count("does not answer") == 1


def test_time_is_up_with_a_clear_error_that_says_how_to_go_on() -> None:
    with pytest.raises(
        OSError, match=r"me:\*\*\*@host has not answered for 0 s: .*terminating.*; start again with --resume"
    ):
        Patience("mysql://me:secret@host", 0.0)(failing(1000, lost))


def test_what_does_not_pass_is_not_tried_again() -> None:
    operation = failing(1, broken)
    with pytest.raises(OSError, match="the storage x failed: .*no such column"):
        Patience("x", 60.0)(operation)
    assert operation() == 2


def test_a_sign_of_life_is_tried_once_and_the_outage_is_known(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("x", 60.0)
    patience.once(failing(1, lost))
    assert patience.outages == 1
    assert patience(lambda: 7) == 7
    assert caplog.text.count("does not answer") == 1


RANKS = RankConfig({"a": 1})
beats = st.lists(st.tuples(st.floats(0.01, 5.0), st.booleans()), max_size=30)


@given(beats)
def test_a_worker_is_silent_when_its_sign_has_not_changed_for_longer_than_allowed(
    observations: list[tuple[float, bool]],
) -> None:
    watch, now, beat, changed = Watch(10.0), 0.0, 0, 0.0
    for first, (wait, is_alive) in enumerate([(0.0, False), *observations]):
        now += wait
        beat += is_alive
        changed = now if is_alive or first == 0 else changed
        claim = Claim(1, RANKS, State.RUNNING, "other", beat)
        assert watch.silent([claim], now) == ([claim] if now - changed > 10.0 else [])


def test_after_an_outage_everyone_gets_the_whole_time_again() -> None:
    watch, claim = Watch(10.0), Claim(1, RANKS, State.RUNNING, "other")
    assert watch.silent([claim], 0.0) == []
    watch.forgive()
    assert watch.silent([claim], 100.0) == []
    assert watch.silent([claim], 111.0) == [claim]


def test_signs_of_life_are_numbered_and_end_with_the_block() -> None:
    counts = list[int]()
    with heartbeat(counts.append, 0.06):
        while len(counts) < 3:
            pass
    assert counts == list(range(1, len(counts) + 1))
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
