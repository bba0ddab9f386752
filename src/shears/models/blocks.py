"""Find a language model's decoder blocks and linears by structure; replace forwards for a while.

Shapes: O output features, I input features of a linear, R rank of its update.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.errors import InputError


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name, such as `model.layers`, and the list of the decoder blocks.

    It is the largest list (by parameters) of GradientCheckpointingLayer, else the largest list of
    modules. Lists in towers that take images or sound count only if there is no other. InputError
    without any.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # seconds, which a package's start is spared

    lists = [(name, child) for name, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child)]
    if not lists:
        raise InputError(f"the model must have a list of decoder blocks, {type(model).__name__} has none")
    # submodels whose main input, as transformers names it, is not text
    inputs = {name: getattr(child, "main_input_name", "input_ids") for name, child in model.named_modules()}
    towers = tuple(f"{name}." for name, main in inputs.items() if name and main != "input_ids")
    of_text = [pair for pair in lists if not pair[0].startswith(towers)] or lists
    layers = [pair for pair in of_text if all(isinstance(block, GradientCheckpointingLayer) for block in pair[1])]
    return max(layers or of_text, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))


def sharing_a_weight(model: nn.Module, linears: Iterable[str]) -> tuple[str, str] | None:
    """Return the first linear that shares its weight, and the module it shares it with."""
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
    """Replace each block's forward by `forward(index)` inside the context."""
    # other libraries wrap the forward on the instance
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for index, (block, _) in enumerate(before):
            block.forward = forward(index)
        yield
    finally:
        for block, own in before:
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


@dataclass(frozen=True)
class LoraUpdate:
    """A low-rank update W + scaling B A."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scaling: float


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linears below a module by qualified name, in the order of definition."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)}


def weight_oi(linear: nn.Module) -> Float[Tensor, "O I"]:
    """Return a linear's weight as outputs x inputs: the same storage, transposed for Conv1D."""
    weight: Tensor = linear.get_parameter("weight")
    return weight.T if isinstance(linear, Conv1D) else weight


def matching(names: Iterable[str], targets: Sequence[str]) -> list[str]:
    """Return the names, in order, that a target matches by dotted suffix or whole regex.

    InputError for a target that matches none; the message lists the names.
    """
    known = list(names)
    selected = set[str]()
    for target in targets:
        try:
            pattern = re.compile(target)
        except re.error as error:
            raise InputError(f"a target must be a name or a regex, got {target!r}: {error}") from None
        matched = {name for name in known if f".{name}".endswith(f".{target}") or pattern.fullmatch(name)}
        if not matched:
            suffixes = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in known))
            close = difflib.get_close_matches(target, suffixes, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            have = ", ".join(suffixes) or "none"
            raise InputError(f"no linear matches target {target!r}; this model has {have}{hint}")
        selected |= matched
    return [name for name in known if name in selected]
