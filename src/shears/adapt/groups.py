"""Groups of linears that share a rank, and LoRA on them.

The groups `auto` are found in the structure of the decoder blocks. A module that owns linears is an
attention if its name or class says so, and an MLP if its linears lead out of the hidden states and
back. Queries, keys and values (all linears of an attention but the last, its output) share a rank.
The first linear of an MLP has one, and so does the second. Of two parallel first linears, the gate
gets no adapter, as in the Shears paper.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shears.adapt.space import SearchSpace
from shears.checkpoints.zeros import EXPERTS
from shears.config import TrainConfig
from shears.config.train_options import AUTO
from shears.errors import InputError, option
from shears.models.blocks import block_matrices, decoder_blocks, kept_dense, linears, matching, weight_oi

ATTENTION = ("attn", "attention")  # parts of the names and classes of attentions
PROJECTIONS = "qkv"  # a group names its linears in this order of first letters, the others last
Group = tuple[str, ...]  # names of linears in their block
Sides = tuple[int, int]  # outputs and inputs of a linear


def build_space(model: nn.Module, groups: Sequence[str], ranks: Sequence[int]) -> SearchSpace:
    """Return the search space: in each block, the linears joined by + share one rank."""
    prefix, blocks = decoder_blocks(model)
    known = [f"{index}.{name}" for index, block in enumerate(blocks) for name in linears(block)]
    modules: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for spec in with_auto(groups, model):
        matched = matching(known, [part.strip() for part in spec.split("+")])
        for index in range(len(blocks)):
            names = [f"{prefix}.{name}" for name in matched if name.startswith(f"{index}.")]
            if not names:
                continue
            group = f"layers.{index}.{spec}"
            modules[group] = tuple(names)
            if taken := [name for name in names if owner.setdefault(name, group) != group]:
                raise InputError(f"a linear must be in one group, {taken[0]} is in {owner[taken[0]]} and {group}")
            usable = max(min(weight_oi(model.get_submodule(name)).shape) for name in names)
            if max(ranks) > usable:
                rule = f"ranks of {group} must be at most {usable}, the largest rank of its weights"
                raise InputError(f"{rule}, got {max(ranks)}; lower ranks")
    return SearchSpace(ranks=dict.fromkeys(modules, tuple(ranks)), modules=modules)


def with_auto(groups: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """Return the groups with `auto` replaced by those of the model, which may be an empty one."""
    return tuple(name for group in groups for name in (auto_groups(model) if group == AUTO else (group,)))


def auto_groups(model: nn.Module) -> tuple[str, ...]:
    """Return the groups of attention and MLP linears for `build_space`; InputError without any.

    Blocks with experts keep their MLPs as they are: experts are stacked in one tensor, and PEFT
    takes the names of other linears of such MLPs for theirs.
    """
    blocks = list(decoder_blocks(model)[1])
    config: Any = model.config
    width = int(config.get_text_config().hidden_size)
    names = dict.fromkeys(name for block in blocks for name in linears(block))
    uses = Counter(id(linear) for block in blocks for linear in linears(block).values())
    has_experts = any(EXPERTS in name.split(".") for name in names) or any(
        matrix.index is not None for block in blocks for matrix in block_matrices("", block)
    )
    found = dict[Group, None]()
    for block in blocks:
        dense = kept_dense(block)
        owners = defaultdict[str, dict[str, Sides]](dict)
        for name, linear in linears(block).items():  # no routers, experts, shared linears
            if uses[id(linear)] == 1 and f"{name}.weight" not in dense and EXPERTS not in name.split("."):
                outputs, inputs = weight_oi(linear).shape
                owners[name.rpartition(".")[0]][name] = outputs, inputs
        for owner, children in owners.items():
            module = block.get_submodule(owner)
            words = f"{owner.rpartition('.')[2]} {type(module).__name__}".lower() if owner else ""
            # a module with weights beside its linears mixes tokens, as state-space models do
            own = next(module.parameters(recurse=False), None)
            mixes = own is not None or any(isinstance(child, nn.Conv1d) for child in module.children())
            if any(word in words for word in ATTENTION):
                found[_of_attention(children, width)] = None
            elif not has_experts and not mixes:
                found |= dict.fromkeys(_of_mlp(children, width))
    if not found:
        known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        raise InputError(
            f"groups auto must find attention or MLP linears, {type(model).__name__} has none that it knows; "
            f"set groups to some of its linears: {known or 'none'}"
        )
    return tuple("+".join(_short(name, names) for name in group) for group in found)


def _of_attention(children: Mapping[str, Sides], width: int) -> Group:
    first = {name: name.rpartition(".")[2][0] for name in children}
    back = [name for name, (outputs, _) in children.items() if outputs == width and len(children) > 1]
    out = ([name for name in back if first[name] == "o"] or back)[-1:]
    inputs = [name for name in children if name not in out]
    return tuple(sorted(inputs, key=lambda name: PROJECTIONS.find(first[name].lower()) % 4))


def _of_mlp(children: Mapping[str, Sides], width: int) -> Iterator[Group]:
    for down in [name for name, (outputs, _) in children.items() if outputs == width][-1:]:
        inner = children[down][1]
        fitting = (inner, 2 * inner)  # the second: gate and first linear in one
        up = [name for name, (outputs, inputs) in children.items() if inputs == width and outputs in fitting]
        if up := [name for name in up if name != down]:
            others = [name for name in up if "gate" not in name.rpartition(".")[2]] or up
            yield (others[0] if len(others) < len(up) else others[-1],)  # the one after the gate
            yield (down,)


def _short(name: str, names: Iterable[str]) -> str:
    """Return the shortest ending of a linear's name that no other linear of any block has."""
    parts = name.split(".")
    endings = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
    others = [f".{other}" for other in names if other != name]
    return next((ending for ending in endings if not any(each.endswith(f".{ending}") for each in others)), name)


def target_modules(model: nn.Module, space: SearchSpace) -> list[str]:
    """Return PEFT's target_modules: name endings if they match just the space, else full names."""
    chosen = set(space.linears)
    endings = sorted({name.rsplit(".", 1)[-1] for name in chosen})
    meant = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if meant == chosen else sorted(chosen)


def add_lora(model: PreTrainedModel, space: SearchSpace, settings: TrainConfig) -> PeftModel:
    """Return the frozen model with a new LoRA of the largest rank; InputError where PEFT cannot."""
    assert settings.alpha is not None, "settings_for decides it"
    config = LoraConfig(
        r=space.max_rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(model, space),
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in space.linears),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), option("groups"):
        torch.manual_seed(settings.seed)
        return get_peft_model(model, config)
