"""Two processes on one training: the same steps as one, one of them writes and speaks, and kill -9 leaves no trace."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from shears.adapt.train import train
from shears.cli import main, tables
from shears.errors import InputError
from shears.training.checkpoints import last_steps
from tests.processes import DEADLINE, Process, forked
from tests.tiny import save_tiny
from tests.training import trainings
from tests.training.small_training import SETTINGS, assert_close, assert_same, log, pad_batches

PYTHON = sys.executable
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SAME: dict[str, dict[str, Any]] = {
    "uniform": {"sampling": "uniform"},
    "nested-taught-padded-split": {
        "sampling": "nested",
        "teacher": "teacher",
        "padded": True,
        "micro_batch_size": 1,
    },
    "sharded": {"shard": True, "validation": "0.2", "validation_every": 3},
    "sharded-sparse": {"shard": True, "sparse_adapter": True, "micro_batch_size": 1},
    "sharded-uniform": {"shard": True, "sampling": "uniform", "recompute": "none"},
    "sharded-checkpointing": {"shard": True, "recompute": "blocks", "padded": True},
}
LONG: dict[str, Any] = {**SETTINGS, "max_steps": 30, "dropout": 0.1, "sampling": "uniform",
                        "validation": "0.06", "validation_every": 3, "early_stopping": 9}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, 18 examples of unequal length (an epoch ends with a step of two), and what two processes made of them."""
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "base")
    generator = random.Random(0)
    rows = [{"prompt": f"{a}+" + "1" * generator.randint(1, 9), "completion": f" {a}"} for a in range(18)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    data = {"data": str(folder / "train.jsonl")}
    save_tiny(folder / "teacher", seed=3)
    wanted = {f"two-{name}": {**SETTINGS, **data, **placed(folder, name)} for name in SAME}
    wanted["whole"] = {**LONG, **data}
    wanted["taken"] = {**SETTINGS, **data}
    wanted["diverging"] = {**SETTINGS, **data, "learning_rate": 1e30, "max_steps": 30}
    wanted["half-broken"] = {**SETTINGS, "data": str(folder / "train.jsonl"), "of_second": {"groups": ["no_proj"]}}
    (folder / "trainings.json").write_text(json.dumps(wanted))
    processes = start_two(folder, lambda: make_trainings(folder))
    assert [process.wait() for process in processes] == [0, 0], processes[0].printed() + processes[1].printed()
    return folder


def make_trainings(folder: Path) -> None:
    """Make them; a warning of torch is no error there, as in a process that does not come from pytest."""
    warnings.simplefilter("default")
    trainings.main(folder)


def placed(folder: Path, name: str) -> dict[str, Any]:
    """The settings of SAME, the teacher with its folder."""
    changes = SAME[name]
    return {**changes, "teacher": str(folder / changes["teacher"])} if "teacher" in changes else changes


def launch(command: list[str]) -> tuple[str, str]:
    """Run a launcher to its end; return what was printed. One that takes too long is told to end its processes."""
    with subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        try:
            printed = running.communicate(timeout=DEADLINE)
        finally:
            running.terminate()
    assert running.returncode == 0, printed[1]
    return printed


def verb(folder: Path, output: str) -> list[str]:
    """The words of the long training."""
    flags = {name.replace("_", "-"): value for name, value in LONG.items()} | {"ranks": "6,4,2"}
    words = [f"--{name}={value}" for name, value in flags.items()]
    return ["shears", "train", str(folder / "base"), str(folder / output), f"--data={folder / 'train.jsonl'}", *words]


def outcomes(folder: Path, name: str) -> list[str]:
    """How a training ended in either process."""
    return [json.loads((folder / f"outcomes-{index}.json").read_text())[name] for index in range(2)]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_make_the_steps_of_one(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, **placed(folder, name)}
    if settings.pop("padded", False):
        pad_batches(monkeypatch)
    one = train(folder / "base", folder / f"one-{name}", data=str(folder / "train.jsonl"), **settings)
    assert outcomes(folder, f"two-{name}") == ["done", "done"]
    for alone, shared in zip(log(one), log(folder / f"two-{name}"), strict=True):
        for key in ("loss", "validation_loss"):
            assert alone.pop(key, 0.0) == pytest.approx(shared.pop(key, 0.0), rel=1e-5)
        assert alone == shared  # step, tokens, learning rate, ranks
    assert_close(one, folder / f"two-{name}")


def test_only_the_first_process_is_told_why_a_folder_is_refused(folder: Path) -> None:
    first, second = outcomes(folder, "taken")
    assert "must not exist yet" in first
    assert second == "exit 2"


def test_a_loss_that_is_not_finite_stops_all_at_the_same_step(folder: Path) -> None:
    first, second = outcomes(folder, "diverging")
    assert first == second
    assert "the loss must be finite" in first
    assert (folder / "diverging.partial" / "checkpoints").is_dir()


def test_an_error_of_one_process_ends_all_with_its_reason(folder: Path) -> None:
    first, second = outcomes(folder, "half-broken")
    assert first == second
    assert first.startswith("process 1: groups must name linears of this model: no linear matches target 'no_proj'")


@pytest.mark.parametrize("by_launcher", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_processes_resume_to_the_same_bits(folder: Path, by_launcher: bool) -> None:
    """In the middle of an epoch, and not of the first one: an epoch has five steps, of an order of its own."""
    name = f"killed-{by_launcher}"
    processes = start_two(folder, command(verb(folder, name)))
    checkpoints = folder / f"{name}.partial" / "checkpoints"
    processes[0].until((checkpoints / "checkpoint-8" / "whole.json").exists)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    for later in (10, 12):  # of processes that were quicker than this one
        shutil.rmtree(checkpoints / f"checkpoint-{later}", ignore_errors=True)
    printed = (launched if by_launcher else resumed)(folder, verb(folder, name))
    assert "30 steps from 8" in printed
    assert printed.count("training 17 examples") == 1  # only the first process logs
    assert printed.count("Next:") == 1
    assert_same(folder / "whole", folder / name)


def resumed(folder: Path, words: list[str]) -> str:
    """Resume in two forks; return what both print."""
    processes = start_two(folder, command([*words, "--resume"]))
    assert [process.wait() for process in processes] == [0, 0], processes[0].printed()
    return "".join(process.printed() for process in processes)


def launched(folder: Path, words: list[str]) -> str:
    """Resume by accelerate's launcher, which sets the same variables; return what all print."""
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "-m"]
    return "".join(launch([PYTHON, "-m", *launcher, *words, "--resume"]))  # multi_gpu: its word for torchrun


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_at_one_step_and_a_resume_gives_the_same_bits(folder: Path) -> None:
    processes = start_two(folder, command(verb(folder, "stopped")))
    checkpoints = folder / "stopped.partial" / "checkpoints"
    processes[0].until((checkpoints / "checkpoint-4" / "whole.json").exists)
    processes[1].send_signal(signal.SIGTERM)  # the other one hears of it after the step in hand
    assert [process.wait() for process in processes] == [128 + signal.SIGTERM] * 2
    last = max(last_steps(checkpoints))
    first, second = (process.printed().splitlines() for process in processes)
    assert first[-1] == f"error: stopped; --resume continues from step {last}"
    assert "error:" not in "".join(second)
    again = start_two(folder, command([*verb(folder, "stopped"), "--resume"]))
    assert [process.wait() for process in again] == [0, 0]
    assert f"30 steps from {last}" in again[0].printed()
    assert_same(folder / "whole", folder / "stopped")


def command(words: list[str]) -> Callable[[], object]:
    """A call of the command line."""

    def call() -> None:
        sys.argv = words
        main()

    return call


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


def test_a_taken_output_ends_all_with_one_line(folder: Path) -> None:
    processes = start_two(folder, command(verb(folder, "taken")))
    assert [process.wait() for process in processes] == [2, 2]
    printed = [process.printed() for process in processes]
    assert printed[0].count("\n") == 1
    assert printed[0].startswith("error: the output must not exist yet")
    assert printed[1] == ""
    assert {path.name for path in (folder / "taken").iterdir()} == {"file"}


@pytest.mark.parametrize("verb", [["run", "recipe.yaml"], ["inspect", "base"]])
def test_other_verbs_are_one_process(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["shears", *verb])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "only heal and train run on several processes" in capfd.readouterr().err


def test_a_launcher_that_shards_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="launcher must leave the model whole, got FSDP.*add --shard"):
        train(folder / "base", folder / "sharded", data=str(folder / "train.jsonl"), **SETTINGS)


def test_each_process_holds_its_part_of_the_frozen_weights(folder: Path) -> None:
    assert outcomes(folder, "sharded") == ["same gradients, half of the weights"] * 2


def test_one_process_has_nothing_to_shard(folder: Path) -> None:
    settings = {**SETTINGS, "max_steps": 2}
    one, other = (
        train(folder / "base", folder / f"alone-{shard}", data=str(folder / "train.jsonl"), shard=shard, **settings)
        for shard in (False, True)
    )
    assert_same(one, other)
