"""A disk that takes no more ends a stage with one line; the output is not there, and the work goes on afterwards."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.recipe import write_recipe

TRAIN = (
    "train base {out} --data train.jsonl --ranks 6,4 --alpha 12 --max-steps 6 --save-steps 2 --batch-size 4 "
    "--device cpu"
)


def shears(folder: Path, command: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process that cannot write larger files (the kernel refuses the write, as on a full disk)."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return python(["-m", "shears", *command.split()], folder, limit)


def python(
    words: list[str], folder: Path, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run([sys.executable, *words], cwd=folder, preexec_fn=before, text=True, capture_output=True,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model called base, and train.jsonl."""
    write_recipe(tmp_path)
    return tmp_path


def test_pruning_onto_a_full_disk(folder: Path) -> None:
    command = "sparsify base out --calibration train.jsonl --num-samples 4 --sequence-length 64"
    failed = shears(folder, command, largest_file=50_000)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: the machine said no: could not write")
    assert "Traceback" not in failed.stderr
    assert not (folder / "out").exists()
    assert shears(folder, command).returncode == 0
    assert json.loads((folder / "out" / "sparsity.json").read_text())["achieved"] == 0.5


FILLING = """
import resource, sys
from shears.adapt.checkpoints import MarkWhole
from shears.cli import main

on_save, saved = MarkWhole.on_save, []

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, resource.RLIM_INFINITY))

def mark(self, args, state, control, **kwargs):
    if saved and {at_the_mark}:
        fill()
    on_save(self, args, state, control, **kwargs)
    saved.append(state.global_step)
    if not {at_the_mark}:
        fill()

MarkWhole.on_save = mark
sys.argv = ["shears", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("largest", "at_the_mark"), [(20_000, False), (30_000, False), (0, True)])
def test_training_onto_a_disk_full_at_the_second_checkpoint(folder: Path, largest: int, at_the_mark: bool) -> None:
    """In its weights, in its optimizer's state, or in what marks it as whole."""
    script = FILLING.format(largest=largest, at_the_mark=at_the_mark)
    failed = python(["-c", script, *TRAIN.format(out="out").split()], folder)
    assert failed.returncode == 1, failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the machine said no: ")
    assert "out.partial" in last
    assert "Traceback" not in failed.stderr
    assert not (folder / "out").exists()
    assert [path.parent.name for path in (folder / "out.partial").rglob("whole.json")] == ["checkpoint-2"]
    resumed = shears(folder, TRAIN.format(out="out") + " --resume")
    assert resumed.returncode == 0
    assert "6 steps from 2" in resumed.stderr
    assert shears(folder, TRAIN.format(out="other")).returncode == 0
    weights = "adapter_model.safetensors"
    assert (folder / "out" / weights).read_bytes() == (folder / "other" / weights).read_bytes()
