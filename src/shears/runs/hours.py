"""What the stages of a plan hold beside weights, and their hours, by arithmetic.

Hours are floating-point operations (FLOP) over the rate of a product that is timed on the stage's
device. H hidden and F intermediate features of a Llama.
"""

import time
from collections.abc import Collection, Iterable, Mapping

import torch

from shears.config.train_options import LoopConfig
from shears.data.rows import Row
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device
from shears.runs.shapes import FP32_BYTES, Shape
from shears.training.fit import FORWARD_TOKENS, MICRO_BATCH

CHARACTERS = 4  # of a token, about
SIDE = 2048  # of the matrices whose product is timed
Place = tuple[str, str]  # a device and a number format


def mean_tokens(rows: Iterable[Row]) -> float:
    """Return about how many tokens a row has, by its characters."""
    sizes = [sum(len(str(value)) for value in row.values()) / CHARACTERS for row in rows]
    return sum(sizes) / max(len(sizes), 1)


def block_bytes(shape: Shape, item: int, adapted: Collection[str] = (), dropout: float = 0.0) -> float:
    """Return the bytes of a token that the backward of a block needs, in `item` bytes a number.

    They are two inputs of norms in fp32, the linears' outputs that are not added to the residual
    stream, the input of the output projection, the activation function, and the inputs of adapted
    linears with the masks of their dropout. In 16 bits a Llama has 16 H + 6 F beside adapters.
    """
    outputs = sum(outputs for outputs, _ in shape.sides.values()) / shape.num_blocks
    widest = max(outputs for outputs, _ in shape.sides.values())
    inputs = sum(shape.sides[name][1] for name in adapted) / shape.num_blocks
    own = 2 * FP32_BYTES * shape.width + item * (outputs - shape.width + widest)
    return own + (item + (dropout > 0)) * inputs


def training_bytes(shape: Shape, item: int, config: LoopConfig, adapted: Collection[str], length: int) -> float:
    """Return the bytes of activations of the largest micro-batch, whose examples have `length` tokens.

    With `recompute` they are the inputs of all blocks and the activations of one.
    """
    block = block_bytes(shape, item, adapted, getattr(config, "dropout", 0.0))
    size = config.micro_batch_size or MICRO_BATCH
    tokens = max(size * length, 0 if config.micro_batch_size else FORWARD_TOKENS)
    if config.recompute:
        return tokens * (block + item * shape.width * shape.num_blocks)
    return tokens * block * shape.num_blocks


def timed_rates(places: Iterable[Place]) -> Mapping[Place, float]:
    """Return the FLOP a second of one product at each place, without those of another machine."""
    return {place: rate for place in sorted(set(places)) if (rate := _timed_rate(*place))}


def _timed_rate(device: str, precision: str) -> float:
    try:
        matrix = torch.ones(SIDE, SIDE, dtype=DTYPES[precision], device=pick_device(device))
    except InputError:
        return 0.0
    seconds = []
    for _ in range(3):  # the first one loads kernels
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def device_memory(device: str) -> tuple[str, int] | None:
    """Return the name and the bytes of a CUDA device of this machine."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(device), int(torch.cuda.mem_get_info(device)[1])
