"""Several processes of one training (`accelerate launch -m shears train ...`): one of them owns the folder."""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.records.folders import partial_folder, working_folder

Result = TypeVar("Result")


def num_processes() -> int:
    """Return how many processes a launcher (torchrun, accelerate) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(*, cpu: bool) -> None:
    """Connect with the other processes: gloo between CPUs, NCCL between GPUs; nothing to do for one.

    InputError where the launcher would take the model apart: `shard_frozen` does that.
    """
    for way in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false") == "true":
            raise InputError(
                f"the launcher must leave the model whole, got {way}; launch without it, and add --shard to train"
            )
    if num_processes() > 1:
        PartialState(cpu=cpu)
        atexit.register(_leave)


def _leave() -> None:
    """Stop the threads of the connection before the interpreter goes; else they may abort a process that is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Wait until every process is here."""
    if num_processes() > 1:
        PartialState().wait_for_everyone()


def together(work: Callable[[], Result]) -> Result:
    """Return what `work` returns in this process; the first InputError of any process is raised in all of them.

    Otherwise those without one would wait for the others for ever.
    """
    if num_processes() == 1:
        return work()
    results: list[Result] = []
    failure = None
    try:
        results.append(work())
    except InputError as error:
        failure = str(error)
    failures = [(index, text) for index, text in enumerate(gather_object([failure])) if text is not None]
    if failures:
        index, text = failures[0]
        raise InputError(f"process {index}: {text}" if index else text)
    return results[0]


@contextmanager
def shared_folder(
    output: Path, asked: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Path]:
    """Yield the working folder of `folders.working_folder`, held by the first process for all of them.

    It is renamed once every process has left the block. InputError, raised in the first process alone, for what
    `working_folder` refuses; the others then exit with code 2.
    """
    if num_processes() == 1:
        with working_folder(output, asked, resume=resume, defaults=defaults) as work:
            yield work
    elif PartialState().is_main_process:
        with _announced(working_folder(output, asked, resume=resume, defaults=defaults)) as work:
            yield work
            wait()
    else:
        entered = [False]
        broadcast_object_list(entered)
        if not entered[0]:
            raise SystemExit(2)
        yield partial_folder(output)
        wait()


@contextmanager
def _announced(folder: AbstractContextManager[Path]) -> Iterator[Path]:
    """Tell the others whether the folder could be entered, whatever kept it from that."""
    with ExitStack() as stack:
        try:
            work = stack.enter_context(folder)
        except BaseException:
            broadcast_object_list([False])
            raise
        broadcast_object_list([True])
        yield work


def shard_frozen(model: PeftModel, device: torch.device) -> None:
    """Let every process hold its part of the frozen weights on `device`; nothing happens to one process.

    What is trained stays whole in every process, outside of the sharding, so that gradients, optimizer and files are
    those of plain data parallelism. The weights come from wherever they are, a block at a time, so that no device holds
    the whole model. FSDP2 (`fully_shard`) does it, in the order of ZeRO-3.
    """
    count = num_processes()
    if count == 1:
        return
    mesh = init_device_mesh(device.type, (count,))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for block in decoder_blocks(model.get_base_model())[1]:
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(model, mesh=mesh, ignored_params=trained)
    model.to(device)  # what is trained, and the rank masks
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
