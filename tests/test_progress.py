"""What a person sees of long work: how far it is, how fast, how much longer."""

import io
import logging
import re
import time

import pytest
from rich.table import Table
from rich.text import Text

from shears import cli, progress
from shears.errors import InputError
from shears.progress import is_first_process, launched, meter, track


class Clock:
    """Seconds that go by as told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_line_now_and_then_says_rate_tokens_and_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), meter("train", 100, "step") as shown:
        for _ in range(20):
            clock.now += 2.0
            shown.advance(work=300, note="tokens/s, loss 1.5")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 8 of 100, 0.5 step/s, 150 tokens/s, loss 1.5, 184 s left",
        "train: 16 of 100, 0.5 step/s, 150 tokens/s, loss 1.5, 168 s left",
    ]


def test_what_an_earlier_run_did_is_counted_and_has_no_rate(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), meter("search", 100, "evaluations") as shown:
        shown.skip(50)
        clock.now = 20.0
        shown.advance(10)
    assert caplog.messages == ["search: 60 of 100, 0.5 evaluations/s, 80 s left"]


def test_short_work_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        for _ in track(range(5), "short", 5):
            clock.now += 1.0
    assert not caplog.messages


ESCAPES = "a\x1b]0;title\x07b\x9b2Jc\x7f\x00"


def test_control_characters_are_written_out_and_styles_stay() -> None:
    stream = io.StringIO()
    shown = progress.VisibleConsole(file=stream, force_terminal=True, color_system="standard", width=60)
    table = Table("head", title=ESCAPES)
    table.add_row(Text(ESCAPES, style="red"))
    shown.print(table)
    shown.print(ESCAPES, markup=False, highlight=False, soft_wrap=True)
    text = stream.getvalue()
    assert "\x1b[31m" in text  # the style of the cell
    assert re.sub(r"\x1b\[[\d;]*m", "", text).isprintable() is False  # line breaks
    assert all(character.isprintable() or character == "\n" for character in re.sub(r"\x1b\[[\d;]*m", "", text))
    assert text.count(r"\x1b]0;title") == 3
    assert r"\x9b2Jc\x7f" in text


def test_a_log_line_and_an_error_write_control_characters_out(capfd: pytest.CaptureFixture[str]) -> None:
    handler = cli._ConsoleHandler()
    handler.emit(logging.LogRecord("shears", logging.INFO, "", 0, "read %s", (ESCAPES,), None))
    with pytest.raises(SystemExit):
        cli._fail([f"no file {ESCAPES}"], 2)
    errors = capfd.readouterr().err
    assert errors.count(r"a\x1b]0;title") == 2
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\x00"} & set(errors)


def test_the_numbers_of_a_launcher_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == (0, 1)
    given = {"WORLD_SIZE": "3", "RANK": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launched() == (1, 3)
    assert not is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="RANK and WORLD_SIZE cannot be used: .*'many'"):
        launched()
