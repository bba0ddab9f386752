"""Less memory for a training step, with the same bits.

Frozen linears are held in the number format that they compute in, the backward pass recomputes what
lies between two products, and the process keeps the pages of freed tensors.
"""

import ctypes
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.pytorch_utils import Conv1D

from shears.models.devices import DTYPES
from shears.models.properties import own_model, runs_backward, trial_logits
from shears.models.sparse_adapter import SparseLinear

logger = logging.getLogger(__name__)
KEPT_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm", "_int_mm", "_scaled_mm")
WHOLE = ("_scaled_dot_product", "shears::packed_attention", "shears::lora_linears")  # names of fused operators begin so
M_TRIM_THRESHOLD = -1  # mallopt(3): free bytes at the heap's end that are returned; -1 returns none
M_MMAP_MAX = -4  # mallopt(3): blocks that may be mapped each on their own
DEFAULTS = ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024))


def hold_as_computed(model: nn.Module, precision: str) -> int:
    """Convert frozen linears to `precision`, in place; return how many, 0 if outputs would change.

    Autocast would convert them in every forward and again in every backward pass. What lies outside
    of linears (embeddings, norms) and what shares its weight with something else keeps its numbers:
    they are read as they are.
    """
    dtype = DTYPES[precision]
    chosen = [] if precision == "fp32" else [each for each in _convertible(model) if each.weight.dtype != dtype]
    if not chosen:
        return 0
    expected = trial_logits(model, dtype)
    before = [(linear, *each) for linear in chosen for each in linear.named_parameters(recurse=False)]
    for linear, name, parameter in before:
        setattr(linear, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    actual = None if expected is None else trial_logits(model, dtype)
    if expected is None or actual is None or not torch.equal(expected, actual):
        for linear, name, parameter in before:
            setattr(linear, name, parameter)
        logger.info("this model computes with its weights outside of its linears: they keep their number format")
        return 0
    done = {id(parameter) for linear in chosen for parameter in linear.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad and id(parameter) not in done and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()  # so that the mapped file can be let go
    return len(chosen)


def _convertible(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the frozen plain linears that own their weights, without those of a sparse adapter."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    masked = {id(layer.get_base_layer()) for layer in model.modules() if isinstance(layer, SparseLinear)}
    for linear in model.modules():
        own = list(linear.parameters())
        frozen = all(each.is_floating_point() and not each.requires_grad and owners[id(each)] == 1 for each in own)
        if type(linear) in (nn.Linear, Conv1D) and id(linear) not in masked and frozen:
            yield linear  # type: ignore[misc]


def recompute_between_products(model: nn.Module, narrow: int) -> bool:
    """Let decoder blocks keep only what `keeps` selects; return whether a trial succeeds.

    `narrow` is the largest rank of the trained products. The backward pass recomputes the
    operations between two products (norms, rotations, activations, sums, casts, LoRA's narrow
    products): they are cheap, but their results take most of the memory. The recomputed values have
    the same bits, because ranks are set before the forward and never inside it. The inverse is
    `own_model(model).activation_checkpointing_disable()`. The model's training mode, its gradients
    and torch's generators stay as they are.
    """
    base: Any = own_model(model)
    if base.supports_gradient_checkpointing:
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, narrow))
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        if runs_backward(model):  # some blocks modify kept results in place, which torch refuses
            return True
        base.activation_checkpointing_disable()
    logger.info("this model cannot recompute between its matrix products: training takes more memory")
    return False


def _policy(narrow: int, _context: Any, operator: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if keeps(operator, args, narrow) else CheckpointPolicy.PREFER_RECOMPUTE


def keeps(operator: torch._ops.OpOverload, args: tuple[Any, ...], narrow: int) -> bool:
    """Tell whether a result is kept: of WHOLE, or a product whose inner side exceeds `narrow`."""
    name = operator._schema.name.removeprefix("aten::")
    if name.startswith(WHOLE):
        return True
    if name not in KEPT_PRODUCTS:
        return False
    factors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.ndim > 1]
    return factors[0].shape[-1] > narrow


@contextmanager
def kept_heap() -> Iterator[bool]:
    """Keep freed memory in the process inside the context; yield whether that works here.

    glibc maps every tensor above 32 MB anew and unmaps it once it is freed; the system then clears
    its pages at the first write. In a training step on a CPU that took a fifth of the time
    (docs/log.md). Other C libraries stay as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    works = hasattr(libc, "gnu_get_libc_version")
    if libc is not None and works:
        works = bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
    try:
        yield works
    finally:
        if libc is not None and works:
            for option, value in DEFAULTS:
                libc.mallopt(option, value)
            libc.malloc_trim(0)
