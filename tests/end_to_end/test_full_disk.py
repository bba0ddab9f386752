"""A disk that takes no more ends a stage with one line; the output is not there, and the work goes on afterwards."""

import json
import os
import resource
import subprocess
import sys
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

    return subprocess.run([sys.executable, "-m", "shears", *command.split()], cwd=folder, preexec_fn=limit, text=True,
                          capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


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


def test_training_onto_a_full_disk(folder: Path) -> None:
    failed = shears(folder, TRAIN.format(out="out"), largest_file=20_000)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert not (folder / "out").exists()
    assert shears(folder, TRAIN.format(out="out") + " --resume").returncode == 0
    assert shears(folder, TRAIN.format(out="other")).returncode == 0
    weights = "adapter_model.safetensors"
    assert (folder / "out" / weights).read_bytes() == (folder / "other" / weights).read_bytes()
