"""Several processes of one training (`torchrun -m shears train`): accelerate joins them; the first one writes."""

import atexit
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState

from shears.progress import is_first_process, launched

Made = TypeVar("Made")


def join_processes(*, cpu: bool) -> None:
    """Connect the processes that a launcher started: by gloo between CPUs, by NCCL between GPUs."""
    if launched()[1] > 1:
        PartialState(cpu=cpu)
        atexit.register(_disconnect)


def _disconnect() -> None:  # the connection's threads could abort an interpreter that exits
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Wait until every process has called this; a process that fails ends the others by its launcher."""
    if launched()[1] > 1:
        PartialState().wait_for_everyone()


def first_process_first(make: Callable[[], Made]) -> Made:
    """Return what `make` returns, in every process once the first one has called it and left its files."""
    if not is_first_process():
        wait()
    made = make()
    if is_first_process():
        wait()
    return made
