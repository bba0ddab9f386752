"""Two processes on one training: the same steps as one, one of them writes, and kill -9 leaves no trace."""

import json
import os
import random
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from shears.adapt.train import train
from shears.cli import main, tables
from shears.config import TrainConfig
from shears.errors import InputError
from shears.training.fit import training_arguments
from tests.processes import Process, forked
from tests.tiny import save_tiny
from tests.training.small_training import SETTINGS, assert_close, assert_same, log

SAME: dict[str, dict[str, Any]] = {
    "uniform": {"sampling": "uniform", "validation": "0.2"},
    "nested-taught-split": {"sampling": "nested", "teacher": "teacher", "micro_batch_size": 1, "recompute": True},
}
LONG: dict[str, Any] = {**SETTINGS, "max_steps": 30, "dropout": 0.1, "sampling": "uniform",
                        "validation": "0.06", "early_stopping": 9}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, 20 examples of unequal length, and what two processes made of them."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "base")
    save_tiny(folder / "teacher", seed=3)
    generator = random.Random(0)
    rows = [{"prompt": f"{a}+" + "1" * generator.randint(1, 9), "completion": f" {a}"} for a in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    processes = start_two(folder, lambda: make_trainings(folder))
    assert [process.wait() for process in processes] == [0, 0], processes[0].printed() + processes[1].printed()
    return folder


def make_trainings(folder: Path) -> None:
    """Make them; a warning of torch is no error there, as in a process that does not come from pytest."""
    warnings.simplefilter("default")
    for name, changes in SAME.items():
        train(folder / "base", folder / f"two-{name}", **placed(folder, changes))
    train(folder / "base", folder / "whole", **placed(folder, LONG))
    with pytest.raises(InputError, match="the loss must be finite"):
        train(folder / "base", folder / "diverging", **placed(folder, {"learning_rate": 1e30, "max_steps": 30}))


def placed(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Whole settings, the teacher with its folder."""
    named = {"teacher": str(folder / changes["teacher"])} if "teacher" in changes else {}
    return {**SETTINGS, "data": str(folder / "train.jsonl"), **changes, **named}


def start_two(folder: Path, call: Callable[[], object]) -> list[Process]:
    """Start two processes as a launcher would, without one that would start or stop them by itself."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}

    def start(rank: int) -> Process:
        def begin() -> None:
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ.update({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            tables.console.quiet = rank > 0  # decided at its import, which may have been here

        return forked(folder / f"log-{port}-{rank}", folder, call, before=begin)

    return [start(rank) for rank in range(2)]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_make_the_steps_of_one(folder: Path, name: str) -> None:
    one = train(folder / "base", folder / f"one-{name}", **placed(folder, SAME[name]))
    for alone, shared in zip(log(one), log(folder / f"two-{name}"), strict=True):
        for key in ("loss", "validation_loss"):
            assert alone.pop(key, 0.0) == pytest.approx(shared.pop(key, 0.0), rel=1e-5)
        assert alone == shared  # step, tokens, learning rate, ranks
    assert_close(one, folder / f"two-{name}")


def test_killed_processes_resume_to_the_same_bits(folder: Path) -> None:
    """In the middle of an epoch, and not of the first one: an epoch has five steps, of an order of its own."""
    words = ["shears", "train", str(folder / "base"), str(folder / "killed"), f"--data={folder / 'train.jsonl'}"]
    flags = {name.replace("_", "-"): value for name, value in LONG.items()} | {"ranks": "6,4,2"}

    def call() -> None:
        sys.argv = [*words, *(f"--{name}={value}" for name, value in flags.items())]
        main()

    processes = start_two(folder, call)
    checkpoints = folder / "killed.partial" / "checkpoints"
    processes[0].until((checkpoints / "checkpoint-8" / "whole.json").exists)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    for later in (10, 12):  # of processes that were quicker than this one
        shutil.rmtree(checkpoints / f"checkpoint-{later}", ignore_errors=True)
    again = start_two(folder, call)
    assert [process.wait() for process in again] == [0, 0], again[0].printed() + again[1].printed()
    printed = again[0].printed() + again[1].printed()
    assert printed.count("Next:") == 1  # only the first process speaks
    assert_same(folder / "whole", folder / "killed")


def test_a_batch_must_split_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainConfig(data="-", batch_size=4, learning_rate=1e-3, device="cpu")
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="batch_size must be a multiple of micro_batch_size x processes, got 4 for"):
        training_arguments(settings, tmp_path, 1, "linear", 600.0)


@pytest.mark.parametrize(("device", "used"), [("cuda:1", 1), ("auto", 0)])
def test_without_a_launcher_one_gpu_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, used: int
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    try:
        settings = TrainConfig(data="-", batch_size=4, learning_rate=1e-3, device=device, precision="fp32")
        arguments = training_arguments(settings, tmp_path, 1, "linear", 600.0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # it took the machine for one with GPUs
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4
    assert arguments.device == torch.device("cuda", used) == current[-1]
