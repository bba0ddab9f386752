"""Checkpoints count once their marker is written, after an fsync of the rest.

The marker holds the files' sizes, so that a checkpoint whose files were cut short afterwards does
not count either.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from shears.checkpoints import tensor_files
from shears.errors import InputError, reading
from shears.records.artifacts import read_object, sync_tree, write_json
from shears.records.folders import MARKER, sizes_of
from shears.records.journal import read_rows, write_rows
from shears.training.processes import num_processes, wait

logger = logging.getLogger(__name__)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[-1])


class MarkWhole(TrainerCallback):
    """Marks every checkpoint once all of it is on the disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Flush the checkpoint of this step, then mark it, once every process has written its part.

        InputError, in all processes, if a trained weight is not finite: a loss can be finite while
        the gradients are not. The earlier checkpoints then remain the last.
        """
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        name = first_non_finite(kwargs["model"])
        if name is not None:
            raise InputError(
                f"the trained weights must be finite, got {name} after step {state.global_step}; train to another "
                f"output with a lower learning rate ({describe_last_checkpoint(folder.parent)})"
            )
        wait()
        if args.process_index != 0:
            return
        sync_tree(folder)
        write_json(
            folder / MARKER, {"step": state.global_step, "processes": num_processes(), "sizes": sizes_of(folder)}
        )


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is marked and its files have the sizes in the marker."""
    try:
        marker = read_object(checkpoint / MARKER)
    except InputError:
        return False
    sizes = sizes_of(checkpoint)
    recorded = marker.get("sizes") or {}
    return isinstance(recorded, dict) and all(sizes.get(name) == size for name, size in recorded.items())


def first_non_finite(model: nn.Module) -> str | None:
    """Return the name of the first trained weight that is not finite; None if all are finite."""
    return tensor_files.first_non_finite(pair for pair in model.named_parameters() if pair[1].requires_grad)


def describe_last_checkpoint(folder: Path) -> str:
    """Return a clause for an error message: where the last good state is, if any was saved."""
    last = last_whole_checkpoint(folder)
    return "no earlier step was saved" if last is None else f"{last} keeps the state after step {step_of(last)}"


def delete_torn(folder: Path) -> None:
    """Delete the checkpoints that were not completely written, with a warning."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of):
        if not _is_whole(path):
            logger.warning("checkpoint %s is incomplete or damaged; skipped", path.name)
            shutil.rmtree(path)


def last_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, whole or not."""
    return [step_of(path) for path in folder.glob("checkpoint-*")]


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; None if there is none."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(whole, key=step_of, default=None)


def check_processes(checkpoint: Path) -> None:
    """Raise InputError if another number of processes wrote it: each has its own random state."""
    written = read_object(checkpoint / MARKER).get("processes", num_processes())
    if written != num_processes():
        raise InputError(
            f"a training must resume on as many processes as it began with ({written}), got {num_processes()}; "
            f"launch {written}, or train anew into another folder"
        )


def random_states() -> list[Tensor]:
    """Return the states of the generators of a step: the CPU's, and that of the GPU in use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def set_random_states(states: Sequence[Tensor]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def truncate_log(path: Path, last_step: int) -> None:
    """Drop the lines of a training log after a step, which will be logged again."""
    if path.exists():
        with reading(path):
            kept = [row for row in read_rows(path) if row["step"] <= last_step]
        write_rows(path, kept)
