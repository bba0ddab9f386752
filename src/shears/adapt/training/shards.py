"""Frozen weights in parts, one a process: each decoder block is gathered where it is needed, and let go again."""

import torch
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from shears.adapt.training.processes import num_processes
from shears.models.blocks import decoder_blocks


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
