"""kill -9 in every stage of `shears run`, started again each time, ends with the bits of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.recipe import write_recipe

COMMAND = [sys.executable, "-m", "shears", "run"]
DEADLINE = 120.0


def start(recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the run as a user would, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, str(recipe), "--output", str(output)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """kill -9 as soon as the moment has come; fail if the run ends before."""
    end = time.monotonic() + DEADLINE
    while not reached():
        assert process.poll() is None, f"ended before the moment: {process.communicate()[0].decode()}"
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(recipe: Path, output: Path) -> str:
    """Run to the end; return what it printed."""
    process = start(recipe, output)
    printed = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 0, printed
    return printed


def artifacts(folder: Path) -> dict[str, bytes]:
    """Every file of a run but Optuna's own database (it holds dates), the times and the lock."""
    left_out = ("study.db", "times.jsonl", "training_times.jsonl", ".lock")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def enough_evaluations(run: Path) -> bool:
    """The search has written its study past a few evaluations (in the database or still in its log)."""
    sizes = [path.stat().st_size for path in (run / "search.partial").glob("study.db-wal") if path.exists()]
    return sum(sizes) > 300_000


@pytest.mark.parametrize("strategy", ["hill-climbing", "nsga2"])
def test_a_run_killed_in_every_stage_ends_with_the_same_bits(tmp_path: Path, strategy: str) -> None:
    recipe, run = write_recipe(tmp_path, strategy), tmp_path / "run"
    finish(recipe, run)
    run.rename(tmp_path / "undisturbed")  # both runs in the same place: an adapter names its base by path
    moments: list[Callable[[], bool]] = [
        (run / "sparse.partial" / ".asked.json").exists,
        (run / "super_adapter.partial" / "checkpoints" / "checkpoint-12").exists,  # perhaps half written
        (run / "search.partial" / "study.db").exists,
        lambda: enough_evaluations(run) or (run / "search").exists(),
        lambda: (run / "sub_adapter.partial").exists() or (run / "sub_adapter").exists(),
        (run / "evaluation" / "dense.json").exists,
    ]
    for moment in moments:
        kill_when(start(recipe, run), moment)
    finish(recipe, run)
    one, other = artifacts(tmp_path / "undisturbed"), artifacts(run)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert not list(run.glob("*.partial"))


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    first = start(recipe, run)
    end = time.monotonic() + DEADLINE
    while not (run / "sparse.partial").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = start(recipe, run)
    printed = second.communicate(timeout=DEADLINE)[0].decode()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.returncode == 2
    assert "only one process may work on" in printed
    assert "Traceback" not in printed
