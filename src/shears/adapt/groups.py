"""The groups of a model's search space, from a recipe's list of linears (`q_proj+k_proj+v_proj,up_proj`)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shears.adapt.space import SearchSpace
from shears.config.targets import matching
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears, weight_oi


def build_space(model: nn.Module, groups: Sequence[str], ranks: Sequence[int]) -> SearchSpace:
    """Return the search space: in each decoder block, the linears joined by + share one of the ranks.

    Each part is a name's ending or a regex (see `config.targets.matching`). InputError if a part matches nothing, if
    two groups claim one linear, if a linear does not return one tensor of its outputs (routers that return their
    choice, grouped products), or if a rank exceeds min(inputs, outputs) of every linear in its group.
    """
    prefix, blocks = decoder_blocks(model)
    by_block = {index: linears(block) for index, block in enumerate(blocks)}
    everywhere = [f"{index}.{name}" for index, names in by_block.items() for name in names]
    modules: dict[str, tuple[str, ...]] = {}
    for spec in groups:
        try:
            matched = matching(everywhere, [part.strip() for part in spec.split("+")])
        except InputError as error:
            raise InputError(f"groups must name linears of this model: {error}") from None
        for index in by_block:
            names = [name for name in matched if name.startswith(f"{index}.")]
            if names:
                modules[f"layers.{index}.{spec}"] = tuple(f"{prefix}.{name}" for name in names)
    _check(model, modules, max(ranks, default=0))
    return SearchSpace(ranks=dict.fromkeys(modules, tuple(ranks)), modules=modules)


def _check(model: nn.Module, modules: Mapping[str, Sequence[str]], largest: int) -> None:
    owner: dict[str, str] = {}
    for group, names in modules.items():
        for name in names:
            if name in owner:
                raise InputError(
                    f"a linear must belong to one group, {name} is in {owner[name]} and {group}; leave it out of one"
                )
            owner[name] = group
            linear = model.get_submodule(name)
            if not _is_linear(linear):
                raise InputError(
                    f"groups must be of linears, {name} of {group} is a {type(linear).__name__}, which returns "
                    "something else; leave it out of groups"
                )
        usable = max(min(_sides(model.get_submodule(name))) for name in names)
        if largest > usable:
            raise InputError(
                f"ranks of {group} must be at most {usable}, the most that one of its linears can use, got {largest}; "
                "lower the largest rank"
            )


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a module returns one tensor with all of its outputs, to which LoRA can add.

    Of nn.Linear's subclasses, only those of transformers are tried: some return something else.
    """
    if not isinstance(module, nn.Linear) or not type(module).__module__.startswith("transformers."):
        return True
    try:
        with torch.no_grad():
            output = module(module.weight.new_zeros(1, module.in_features))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, module.out_features)


def _sides(linear: nn.Module) -> Sequence[int]:
    """Return the outputs and inputs of a linear, whose weight may be quantized and packed."""
    return (linear.out_features, linear.in_features) if isinstance(linear, nn.Linear) else weight_oi(linear).shape


def target_modules(model: nn.Module, space: SearchSpace) -> list[str]:
    """Return PEFT's target_modules: name endings if they match exactly the space's linears, else full names."""
    chosen = {name for names in space.modules.values() for name in names}
    endings = sorted({name.rsplit(".", 1)[-1] for name in chosen})
    meant = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if meant == chosen else sorted(chosen)
