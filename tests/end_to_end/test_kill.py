"""kill -9 in every stage of `shears run`, started again each time, ends with the bits of an undisturbed run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shears.records.artifacts import baseline_folder
from tests.end_to_end.recipe import write_recipe
from tests.processes import DEADLINE, Process, command_line


def start(recipe: Path, output: Path) -> Process:
    """Start the run."""
    log = recipe.with_name("log")
    log.unlink(missing_ok=True)
    return command_line(log, recipe.parent, "run", str(recipe), "--output", str(output))


def finish(recipe: Path, output: Path) -> None:
    """Run to the end."""
    process = start(recipe, output)
    assert process.wait() == 0, process.printed()


def finish_as_a_user(recipe: Path, output: Path) -> None:
    """Run to the end in a process that shares nothing with the others: not even the order of sets of words."""
    words = [sys.executable, "-m", "shears", "run", str(recipe), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many as a fork has
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=DEADLINE, env=environment)
    assert done.returncode == 0, done.stderr


def artifacts(folder: Path) -> dict[str, bytes]:
    """Every file of a run but Optuna's own database (it holds dates), the times and the lock."""
    left_out = ("study.journal", "times.jsonl", "training_times.jsonl", ".lock")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def enough_evaluations(run: Path) -> bool:
    """The search has written its study past a few evaluations."""
    study = run / "search.partial" / "study.journal"
    return study.exists() and study.stat().st_size > 10_000


def test_a_run_killed_in_every_stage_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Other strategies are killed in tests/searching/test_strategies.py."""
    recipe, run = write_recipe(tmp_path, "nsga2"), tmp_path / "run"
    recipe.write_text(recipe.read_text() + "baselines: dense-lora\n")
    finish_as_a_user(recipe, run)
    run.rename(tmp_path / "undisturbed")  # both runs in the same place: an adapter names its base by path
    moments: list[Callable[[], bool]] = [
        (run / "sparse.partial" / ".asked.json").exists,
        (run / "super_adapter.partial" / "checkpoints" / "checkpoint-6").exists,  # perhaps half written
        (run / "search.partial" / "study.journal").exists,
        lambda: enough_evaluations(run) or (run / "search").exists(),
        lambda: (run / "sub_adapter.partial").exists() or (run / "sub_adapter").exists(),
        (baseline_folder(run, "dense-lora.partial") / "checkpoints" / "checkpoint-6").exists,
        (run / "evaluation" / "dense.json").exists,
    ]
    for moment in moments:
        process = start(recipe, run)
        process.until(moment)
        process.kill()
    finish(recipe, run)
    one, other = artifacts(tmp_path / "undisturbed"), artifacts(run)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert not list(run.glob("*.partial"))


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    first = start(recipe, run)
    first.until((run / "sparse.partial").exists)
    first.send_signal(signal.SIGSTOP)
    try:
        second = command_line(tmp_path / "second", tmp_path, "run", str(recipe), "--output", str(run))
        assert second.wait() == 2
    finally:
        first.kill()
    printed = second.printed()
    assert "only one process may work on" in printed
    assert "Traceback" not in printed
