"""Groups `auto`: attention and MLP linears, found in the structure of the decoder blocks.

A module that owns linears is an attention if its name or class says so, and an MLP if its linears
lead out of the hidden states and back. Queries, keys and values (all of an attention's linears but
the last, its output) share a rank; the first linear of an MLP has one, and the second. Of two
parallel first linears, the gate gets no adapter, as in the Shears paper.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shears.checkpoints.configuration import known_config
from shears.checkpoints.conversion import empty_model
from shears.checkpoints.zeros import EXPERTS
from shears.config.train import AUTO
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears
from shears.models.blockwise.matrices import block_matrices, kept_dense, linear_matrix

ATTENTION = ("attn", "attention")  # parts of the names and classes of attentions
PROJECTIONS = "qkv"  # the order in which a group names its linears, as far as their names begin with these
Group = tuple[str, ...]  # names of linears in their block
Sides = tuple[int, int]  # outputs and inputs of a linear


def resolved_groups(groups: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return the groups with `auto` replaced by those of the model in a folder; loads no weight."""
    if AUTO not in groups:
        return tuple(groups)
    return with_auto(groups, empty_model(folder, known_config(folder), torch.float32))


def with_auto(groups: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Return the groups with `auto` replaced by those that the model's structure gives."""
    return tuple(name for group in groups for name in (auto_groups(model) if group == AUTO else (group,)))


def auto_groups(model: nn.Module) -> tuple[str, ...]:
    """Return the groups of attention and MLP linears for `build_space`; InputError without any.

    Blocks with experts keep their MLPs as they are: experts are stacked in one tensor, and PEFT
    takes the names of other linears of such MLPs for theirs.
    """
    blocks = list(decoder_blocks(model)[1])
    config: Any = model.config
    width = int(config.get_text_config().hidden_size)
    has_experts = any(map(_has_experts, blocks))
    names = dict.fromkeys(name for block in blocks for name in linears(block))
    found = dict[Group, None]()
    for block, owners in zip(blocks, _owners(blocks), strict=True):
        for owner, children in owners.items():
            module = block.get_submodule(owner)
            if _is_attention(owner, module):
                found |= dict.fromkeys(_of_attention(owner, children, width))
            elif not has_experts and _is_pure(module):
                found |= dict.fromkeys(_of_mlp(owner, children, width))
    if not found:
        known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        raise InputError(
            f"groups auto must find attention or MLP linears, {type(model).__name__} has none that it knows; name "
            f"groups of its linears: {known or 'none'}"
        )
    return tuple("+".join(_short(name, names) for name in group) for group in found)


def _has_experts(block: nn.Module) -> bool:
    stacked = any(matrix.index is not None for matrix in block_matrices("", block))
    return stacked or any(EXPERTS in name.split(".") for name in linears(block))


def _owners(blocks: Sequence[nn.Module]) -> Iterator[Mapping[str, dict[str, Sides]]]:
    """Yield each block's linears with outputs and inputs, by the owner's name and their own.

    Routers, experts, and linears that several blocks share are left out.
    """
    uses = Counter(id(linear) for block in blocks for linear in linears(block).values())
    for block in blocks:
        dense = kept_dense(block)
        owners = defaultdict[str, dict[str, Sides]](dict)
        for name, linear in linears(block).items():
            owner, _, own = name.rpartition(".")
            if uses[id(linear)] == 1 and f"{name}.weight" not in dense and EXPERTS not in name.split("."):
                owners[owner][own] = linear_matrix(name, linear).shape
        yield owners


def _of_attention(owner: str, children: Mapping[str, Sides], width: int) -> Iterator[Group]:
    """Yield the group of an attention's linears, without the last one that leads back."""
    back = [name for name, (outputs, _) in children.items() if outputs == width and len(children) > 1]
    out = ([name for name in back if name.startswith("o")] or back)[-1:]
    inputs = sorted((name for name in children if name not in out), key=_projection)
    yield tuple(_full(owner, name) for name in inputs)


def _of_mlp(owner: str, children: Mapping[str, Sides], width: int) -> Iterator[Group]:
    """Yield the groups of an MLP's first and second linear; none if they do not fit."""
    for down in [name for name, (outputs, _) in children.items() if outputs == width][-1:]:
        inner = children[down][1]
        fitting = (inner, 2 * inner)  # the second: gate and first linear in one
        up = [name for name, (outputs, inputs) in children.items() if inputs == width and outputs in fitting]
        if up := [name for name in up if name != down]:
            yield (_full(owner, _without_gate(up)),)
            yield (_full(owner, down),)


def _full(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _is_attention(owner: str, module: nn.Module) -> bool:
    words = f"{owner.rpartition('.')[2]} {type(module).__name__}".lower() if owner else ""
    return any(word in words for word in ATTENTION)


def _is_pure(module: nn.Module) -> bool:
    """Tell whether a module has no weights beside its linears, as state-space models have."""
    mixes = any(isinstance(child, nn.Conv1d) for child in module.children())
    return not mixes and next(module.parameters(recurse=False), None) is None


def _without_gate(up: Sequence[str]) -> str:
    """Return the first linear of an MLP: of several, the one behind the gate."""
    others = [name for name in up if "gate" not in name] or list(up)
    return others[0] if len(others) < len(up) else others[-1]


def _projection(name: str) -> int:
    index = PROJECTIONS.find(name[:1].lower())
    return index if index >= 0 else len(PROJECTIONS)


def _short(name: str, names: Iterable[str]) -> str:
    """Return the shortest ending of a linear's name that no other linear of any block has."""
    parts = name.split(".")
    endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
    others = [f".{other}" for other in names if other != name]
    return next((ending for ending in endings if not any(each.endswith(f".{ending}") for each in others)), name)
