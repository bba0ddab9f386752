"""A disk that takes no more ends a stage with one line; the output is not there, and the work goes on afterwards."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shears.adapt.checkpoints import MarkWhole
from tests.end_to_end.recipe import write_recipe
from tests.processes import command_line

TRAIN = (
    "train base {out} --data train.jsonl --ranks 6,4 --alpha 12 --max-steps 6 --save-steps 2 --batch-size 4 "
    "--device cpu"
)


def shears(folder: Path, command: str, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a verb in a process of its own, `before` called in it; return its exit code and what it printed."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    process = command_line(log, folder, *command.split(), before=before)
    return process.wait(), process.printed()


def fill(largest_file: int) -> None:
    """Let the process write no larger files: the kernel refuses the write, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model called base, and train.jsonl."""
    write_recipe(tmp_path)
    return tmp_path


def test_pruning_onto_a_full_disk(folder: Path) -> None:
    command = "sparsify base out --calibration train.jsonl --num-samples 4 --sequence-length 64"
    code, printed = shears(folder, command, lambda: fill(50_000))
    assert code == 1
    assert printed.strip().splitlines()[-1].startswith("error: the machine said no: could not write")
    assert "Traceback" not in printed
    assert not (folder / "out").exists()
    assert shears(folder, command)[0] == 0
    assert json.loads((folder / "out" / "sparsity.json").read_text())["achieved"] == 0.5


def fill_at_the_second_checkpoint(largest_file: int) -> None:
    """Fill the disk behind the first checkpoint; with 0, only while the second one is marked as whole."""
    on_save, saved = MarkWhole.on_save, []

    def mark(self: MarkWhole, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        saved.append(state.global_step)
        if len(saved) == 2:
            fill(largest_file)
        try:
            on_save(self, args, state, control, **keywords)
        finally:
            fill(largest_file or resource.RLIM_INFINITY)  # what is printed goes to a file, too

    MarkWhole.on_save = mark  # type: ignore[method-assign]


@pytest.mark.parametrize("largest", [20_000, 30_000, 0])
def test_training_onto_a_disk_full_at_the_second_checkpoint(folder: Path, largest: int) -> None:
    """In its weights, in its optimizer's state, or in what marks it as whole."""
    command = TRAIN.format(out="out")
    code, printed = shears(folder, command, lambda: fill_at_the_second_checkpoint(largest))
    assert code == 1, printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: the machine said no: ")
    assert "out.partial" in last
    assert "Traceback" not in printed
    assert not (folder / "out").exists()
    assert [path.parent.name for path in (folder / "out.partial").rglob("whole.json")] == ["checkpoint-2"]
    code, printed = shears(folder, command + " --resume")
    assert code == 0
    assert "6 steps from 2" in printed
    assert shears(folder, TRAIN.format(out="other"))[0] == 0
    weights = "adapter_model.safetensors"
    assert (folder / "out" / weights).read_bytes() == (folder / "other" / weights).read_bytes()
