"""A disk that takes no more ends a stage with one line; the output is not there, and the work goes on afterwards."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shears.training.fit import Steps
from tests.end_to_end.recipe import write_recipe
from tests.processes import command_line

TRAIN = (
    "train base {out} --data train.jsonl --ranks 6,4 --alpha 12 --max-steps 6 --save-steps 2 --batch-size 4 "
    "--device cpu"
)


def shears(folder: Path, command: str, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Run a verb in a process of its own, `before` called in it; return its exit code and what it printed.

    It prints to a pipe: a file could not be written either.
    """
    reader, writer = os.pipe()

    def begin() -> None:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        before()

    process = command_line(folder / "log", folder, *command.split(), before=begin)
    os.close(writer)
    code = process.wait()
    with open(reader) as printed:
        return code, printed.read()


def fill(largest_file: int) -> None:
    """Let the process write no larger files: the kernel refuses the write, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model called base, train.jsonl, and an adapter whose training had room: undisturbed."""
    made = tmp_path_factory.mktemp("disk")
    write_recipe(made)
    code, printed = shears(made, TRAIN.format(out="undisturbed"))
    assert code == 0, printed
    return made


def test_pruning_onto_a_full_disk(folder: Path) -> None:
    command = "sparsify base out --calibration train.jsonl --num-samples 4 --sequence-length 64"
    code, printed = shears(folder, command, lambda: fill(50_000))
    assert code == 1
    assert printed.strip().splitlines()[-1].startswith("error: I/O error: ")
    assert "Traceback" not in printed
    assert not (folder / "out").exists()
    assert shears(folder, command)[0] == 0
    assert json.loads((folder / "out" / "sparsity.json").read_text())["achieved"] == 0.5


def fill_at_the_second_checkpoint(largest_file: int, at_the_mark: bool) -> None:
    """Fill the disk behind the first checkpoint, or between the second one and what marks it as whole."""
    on_save, saved = Steps.on_save, list[int]()

    def mark(self: Steps, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if saved and at_the_mark:
            fill(largest_file)
        on_save(self, args, state, control, **keywords)
        saved.append(state.global_step)
        if not at_the_mark:
            fill(largest_file)

    Steps.on_save = mark  # type: ignore[method-assign]


@pytest.mark.parametrize(("largest", "at_the_mark"), [(20_000, False), (30_000, False), (0, True)])
def test_training_onto_a_disk_full_at_the_second_checkpoint(folder: Path, largest: int, at_the_mark: bool) -> None:
    """In its weights, in its optimizer's state, or in what marks it as whole."""
    out = folder / f"out-{largest}"
    command = TRAIN.format(out=out.name)
    code, printed = shears(folder, command, lambda: fill_at_the_second_checkpoint(largest, at_the_mark))
    assert code == 1, printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: I/O error: ")
    assert "Traceback" not in printed
    assert not out.exists()
    assert [path.parent.name for path in Path(f"{out}.partial").rglob("whole.json")] == ["checkpoint-2"]
    code, printed = shears(folder, command)
    assert code == 0
    assert "steps 3 to 6" in printed
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (folder / "undisturbed" / weights).read_bytes()
