"""What a person sees of long work: how far it is, how fast, how much longer."""

import time

import pytest

from shears.progress import meter, track


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
        "train: 8 of 100, 0.5 step/s 150 tokens/s, loss 1.5, 184 s left",
        "train: 16 of 100, 0.5 step/s 150 tokens/s, loss 1.5, 168 s left",
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
