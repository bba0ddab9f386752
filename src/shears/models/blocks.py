"""The decoder blocks of any language model, found by structure, and how their forwards are replaced for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from shears.errors import InputError


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the decoder blocks and their name, such as `model.layers`; InputError where there are none.

    They are the largest list (by parameters) of GradientCheckpointingLayer, else the largest list of modules. Towers
    that take images or sound do not count, however large, unless there is nothing else.
    """
    lists = [(name, child) for name, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child)]
    if not lists:
        raise InputError(f"the model must have a list of decoder blocks, {type(model).__name__} has none")
    towers = _towers(model)
    of_text = [pair for pair in lists if not pair[0].startswith(towers)] or lists
    layers = [pair for pair in of_text if all(isinstance(block, GradientCheckpointingLayer) for block in pair[1])]
    return max(layers or of_text, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))


def _towers(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the models inside a model whose input is no text, by what transformers says of them."""
    parts = ((name, getattr(child, "main_input_name", "input_ids")) for name, child in model.named_modules())
    return tuple(f"{name}." for name, takes in parts if name and takes != "input_ids")


def sharing_a_weight(model: nn.Module, linears: Iterable[str]) -> tuple[str, str] | None:
    """Return the first of the named linears whose weight is another module's too, and that one; None where none is."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    for linear in linears:
        shared = owners[id(model.get_parameter(f"{linear}.weight"))]
        if len(shared) > 1:
            return linear, next(name for name in shared if name != linear)
    return None


@contextmanager
def replaced_forwards(blocks: Iterable[nn.Module], forward: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Put `forward(index)` in the place of the blocks' forwards for a while."""
    before = [(block, block.__dict__.get("forward")) for block in blocks]  # a wrapper others put on the instance
    try:
        for index, (block, _) in enumerate(before):
            block.forward = forward(index)
        yield
    finally:
        for block, own in before:
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linears below a module by qualified name, in the order of definition."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)}


def weight_oi(linear: nn.Module) -> Float[Tensor, "O I"]:
    """Return a linear's weight as outputs x inputs: the same storage, transposed for Conv1D."""
    weight: Tensor = linear.get_parameter("weight")
    return weight.T if isinstance(linear, Conv1D) else weight
