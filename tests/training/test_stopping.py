"""Checkpoints by time and at a signal: a resume gives the bits of an undisturbed training, and messages are true."""

import hashlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shears.adapt import train as train_module
from shears.adapt.train import train
from shears.errors import InputError, Interrupted
from shears.records.folders import partial_folder
from shears.training.checkpoints import last_steps
from shears.training.loop import fit
from shears.training.step_log import StepLog
from shears.training.stopping import SaveInTime
from tests.processes import command_line
from tests.training.conftest import Undisturbed
from tests.training.small_training import SETTINGS, assert_same, stop_after
from tests.training.test_not_finite import spoil

RARELY = {**SETTINGS, "save_steps": 50, "dropout": 0.1}
NUMBERS = [signal.SIGINT, signal.SIGTERM]


class Clock:
    """A clock that stands still but where a test moves it."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def after_step(step: int, monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Let something happen when a step is logged."""
    on_step_end = StepLog.on_step_end

    def logged(self: StepLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        on_step_end(self, args, state, control, **keywords)
        if state.global_step == step:
            event()

    monkeypatch.setattr(StepLog, "on_step_end", logged)


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file but the durations."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "training_times.jsonl")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def steps_kept(output: Path) -> list[int]:
    return sorted(last_steps(partial_folder(output) / "checkpoints"))


@pytest.mark.parametrize("step", [1, 3])
def test_two_minutes_after_the_last_checkpoint_another_is_written(
    step: int, base: Path, data: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(**RARELY)
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "fit", partial(fit, clock=clock))
        after_step(step, patch, lambda: setattr(clock, "seconds", clock.seconds + 120))
        stop_after(step, patch)
        with pytest.raises(Interrupted) as stopped:
            train(base, tmp_path / "out", data=data, **RARELY)
    assert steps_kept(tmp_path / "out") == [step]
    assert (stopped.value.step, stopped.value.is_kept) == (step, True)
    assert hashes(train(base, tmp_path / "out", resume=True, data=data, **RARELY)) == hashes(whole)


def test_without_two_minutes_there_is_no_checkpoint(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(train_module, "fit", partial(fit, clock=clock))
    after_step(2, monkeypatch, lambda: setattr(clock, "seconds", 119.9))
    stop_after(3, monkeypatch)
    with pytest.raises(Interrupted) as stopped:
        train(base, tmp_path / "out", data=data, **RARELY)
    assert (stopped.value.step, stopped.value.is_kept) == (None, False)
    assert not partial_folder(tmp_path / "out").exists(), "it would stand in the way of the next try"


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM), (3, signal.SIGINT)])
def test_at_a_signal_the_step_ends_and_is_saved(
    step: int,
    number: signal.Signals,
    base: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(each) for each in NUMBERS]
    whole = undisturbed(**RARELY)
    with monkeypatch.context() as patch:
        after_step(step, patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stopped:
            train(base, tmp_path / "out", data=undisturbed.data, **RARELY)
    assert (stopped.value.number, stopped.value.step) == (number, step)
    assert steps_kept(tmp_path / "out") == [step]
    assert [signal.getsignal(each) for each in NUMBERS] == handlers
    assert hashes(train(base, tmp_path / "out", resume=True, data=undisturbed.data, **RARELY)) == hashes(whole)


def test_a_second_signal_stops_at_once(base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was not heard")

    after_step(2, monkeypatch, twice)
    with pytest.raises(Interrupted) as stopped:
        train(base, tmp_path / "out", data=data, **RARELY)
    assert (stopped.value.number, stopped.value.is_kept) == (signal.SIGINT, False)


def test_a_launcher_may_repeat_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sends its processes the signal that they have from the terminal."""
    monkeypatch.setattr("shears.training.stopping.num_processes", lambda: 2)
    clock = Clock()
    in_time = SaveInTime(clock)
    in_time._note(signal.SIGINT, None)
    clock.seconds = 0.5
    in_time._note(signal.SIGINT, None)
    clock.seconds = 5
    with pytest.raises(Interrupted):
        in_time._note(signal.SIGINT, None)


def test_a_signal_in_the_last_step_leaves_all_to_a_resume(
    base: Path, data: str, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(**RARELY)
    with monkeypatch.context() as patch:
        after_step(7, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(base, tmp_path / "out", data=data, **RARELY)
    assert_same(whole, train(base, tmp_path / "out", resume=True, data=data, **RARELY))


def test_a_refusal_without_a_checkpoint_leaves_nothing(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(tmp_path.iterdir())
    spoil(1, monkeypatch)
    with pytest.raises(InputError, match="no earlier step was saved"):
        train(base, tmp_path / "out", data=data, **RARELY)
    assert set(tmp_path.iterdir()) == before


WORDS = ("--ranks", "6,4,2", "--max-steps", "2000", "--batch-size", "4", "--device", "cpu", "--precision", "fp32")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_command_line_says_from_which_step(number: signal.Signals, base: Path, data: str, tmp_path: Path) -> None:
    words = ("train", str(base), str(tmp_path / "out"), "--data", data, *WORDS)
    process = command_line(tmp_path / "log", tmp_path, *words)
    log = partial_folder(tmp_path / "out") / "training_log.jsonl"
    process.until(lambda: log.exists() and log.stat().st_size > 0)
    process.send_signal(number)
    assert process.wait() == 128 + number
    [step] = steps_kept(tmp_path / "out")[-1:]
    lines = process.printed().splitlines()
    assert lines[-1] == f"error: stopped; --resume continues from step {step}"
    assert "Traceback" not in process.printed()


def test_before_the_first_step_the_command_line_says_that_nothing_is_kept(
    base: Path, data: str, tmp_path: Path
) -> None:
    words = ("train", str(base), str(tmp_path / "out"), "--data", data, *WORDS)
    stop = partial(after_loading, signal.SIGTERM)
    process = command_line(tmp_path / "log", tmp_path, *words, before=stop)
    assert process.wait() == 143
    assert process.printed().splitlines()[-1] == "error: stopped; nothing is kept"
    assert not partial_folder(tmp_path / "out").exists()


def after_loading(number: int) -> None:
    """In the process: get a signal where the loop would begin."""
    pytest.MonkeyPatch().setattr(train_module, "fit", lambda *_: os.kill(os.getpid(), number))
