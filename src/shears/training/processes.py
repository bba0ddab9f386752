"""Several processes of one training (`accelerate launch -m shears train`); the first writes."""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from shears.config.fields import StageConfig
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.progress import launched
from shears.records.folders import partial_folder, working_folder

Returned = TypeVar("Returned")


def num_processes() -> int:
    """Return how many processes a launcher started; 1 without one, InputError for its wrong variables."""
    return launched()[1]


def join_processes(*, cpu: bool) -> None:
    """Connect several processes: by gloo between CPUs, by NCCL between GPUs.

    InputError if the launcher would shard the model itself; `shard_frozen` does that.
    """
    for engine in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false") == "true":
            raise InputError(
                f"the launcher must leave the model whole, got {engine}; launch without it, and add --shard to train"
            )
    if num_processes() > 1:
        PartialState(cpu=cpu)
        atexit.register(_disconnect)


def _disconnect() -> None:
    """Stop the connection's threads before the interpreter exits, which they could abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Wait until every process has called this."""
    if num_processes() > 1:
        PartialState().wait_for_everyone()


def raise_in_all(work: Callable[[], Returned]) -> Returned:
    """Return the result of `work`; raise the first InputError of any process in all of them.

    Otherwise the processes without an error would wait for the others forever.
    """
    if num_processes() == 1:
        return work()
    results: list[Returned] = []
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
    output: Path, config: Mapping[str, Any], *, resume: bool, kind: type[StageConfig] | None = None
) -> Iterator[Path]:
    """Yield the folder of `working_folder`, which the first process opens for all of them.

    The folder is renamed once every process has left the block. InputError, in the first process
    alone, for what `working_folder` refuses; the others then exit with code 2.
    """
    folder = working_folder(output, config, resume=resume, kind=kind)
    if num_processes() == 1:
        with folder as work:
            yield work
    elif PartialState().is_main_process:
        with ExitStack() as stack:
            try:
                work = stack.enter_context(folder)
            except BaseException:  # the other processes must not wait, whatever the error is
                broadcast_object_list([False])
                raise
            broadcast_object_list([True])
            yield work
            wait()
    else:
        entered = [False]
        broadcast_object_list(entered)
        if not entered[0]:
            raise SystemExit(2)
        yield partial_folder(output)
        wait()


def shard_frozen(model: PeftModel, device: torch.device) -> None:
    """Split the frozen weights: each process holds its part on `device`.

    Each decoder block is gathered where it is needed, then freed. Trained parameters stay whole in
    every process, outside of the sharding, so that gradients, optimizer and files are those of
    plain data parallelism. Weights are moved a block at a time: no device holds the whole model.
    FSDP2 (`fully_shard`) does it, in the order of ZeRO-3.
    """
    count = num_processes()
    if count == 1:
        return
    mesh = init_device_mesh(device.type, (count,))
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for block in decoder_blocks(model.get_base_model())[1]:
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(model, mesh=mesh, ignored_params=trained)
    model.to(device)  # the trained parameters and the rank masks
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)


def reshard(model: nn.Module) -> None:
    """Free what a forward without a backward pass left gathered in a sharded model.

    The process that saves a checkpoint frees it by itself; in the next forward it would gather
    alone.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
