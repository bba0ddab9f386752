"""A model's decoder blocks, linears, and the weights that can be pruned, found by structure.

Shapes: O output features, I input features, R rank of an update, E experts, F features between an
expert's two matrices, H hidden features.

A linear (or Conv1D) is one matrix. A 3-D parameter is a stack of E matrices, one an expert, if its
module has an attribute equal to E whose name contains `experts` (`num_experts`). This excludes the
3-D weights of convolutions, state-space models and token mixing. For routers see `kept_dense`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
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
    from transformers.modeling_layers import GradientCheckpointingLayer  # takes seconds, so lazy

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
    """Return the names, in order, that a target matches by dotted suffix or whole regex."""
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


@dataclass(frozen=True)
class Matrix:
    """A weight that can be pruned: a parameter, or slice `index` of a stack.

    `name` is unique: `model.layers.0.mlp.up_proj`, `model.layers.0.mlp.experts.gate_up_proj.3`.
    `shape` is (outputs, inputs); a `transposed` weight is stored as inputs x outputs (Conv1D).
    """

    name: str
    parameter: str
    index: int | None
    transposed: bool
    shape: tuple[int, int]

    @property
    def linear(self) -> str:
        """The name that people use for a weight: all experts of a stack share one."""
        return self.name if self.index is None else self.name.rpartition(".")[0]

    def view(self, model: nn.Module) -> Float[Tensor, "O I"]:
        """Return a view of the weight: writing to it changes the parameter of the model."""
        return self.cut(model.get_parameter(self.parameter).detach())

    def cut(self, stored: Tensor) -> Float[Tensor, "O I"]:
        matrix = stored if self.index is None else stored[self.index]
        return matrix.T if self.transposed else matrix


def block_matrices(prefix: str, block: nn.Module) -> list[Matrix]:
    """Return every weight of the block that can be pruned, in the order of definition."""
    dense = kept_dense(block)
    matrices: list[Matrix] = []
    for name, module in block.named_modules():
        full = ".".join(part for part in (prefix, name) if part)
        if isinstance(module, nn.Linear | Conv1D):
            if f"{name}.weight" not in dense:
                matrices.append(linear_matrix(full, module))
        else:
            matrices.extend(_slices(full, module))
    return matrices


def affordable(groups: Iterable[Sequence[Matrix]], budget: int) -> Iterator[Sequence[Matrix]]:
    """Split stacks of experts so that a part's moments (I x I each) fit into `budget` bytes."""
    for group in groups:
        size = len(group)
        if group[0].index is not None:
            size = max(budget // (4 * group[0].shape[1] ** 2), 1)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def kept_dense(block: nn.Module) -> dict[str, int]:
    """Return the sizes of the block's parameters that stay dense on purpose, by name.

    These choose experts: all below a module whose name or class contains router; those with as many
    outputs as there are experts, in a module called gate or one that names this number; and linears
    with one output, the gates of shared experts. A wrong choice costs more than they could save.
    """
    ends = [child for name, child in block.named_modules() if name.endswith("experts")]
    lists = {len(child) for child in ends if isinstance(child, nn.ModuleList)}
    experts = lists.union(*(_named_counts(module) for module in block.modules()))
    routers = tuple(
        f"{name}."
        for name, module in block.named_modules()
        if name.rsplit(".", 1)[-1] == "router" or "router" in type(module).__name__.lower()
    )
    sizes: dict[str, int] = {}
    for name, module in block.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            chooses = f"{name}.".startswith(routers) or _is_gate(name, module, weight, experts)
            if weight.ndim == 2 and not key.endswith("bias") and chooses:
                sizes[f"{name}.{key}" if name else key] = weight.numel()
    return sizes


def linear_matrix(name: str, linear: nn.Module) -> Matrix:
    rows, columns = linear.get_parameter("weight").shape
    transposed = isinstance(linear, Conv1D)
    return Matrix(name, f"{name}.weight", None, transposed, (columns, rows) if transposed else (rows, columns))


def _slices(name: str, module: nn.Module) -> Iterator[Matrix]:
    counts = _named_counts(module)
    stacks = {
        key: parameter
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.is_floating_point() and parameter.shape[0] in counts
    }
    transposed = _stored_transposed(module, [tuple(each.shape) for each in stacks.values()])
    for key, parameter in stacks.items():
        count, rows, columns = parameter.shape
        shape = (columns, rows) if transposed else (rows, columns)
        for index in range(count):
            yield Matrix(f"{name}.{key}.{index}", f"{name}.{key}", index, transposed, shape)


def _stored_transposed(module: nn.Module, shapes: list[tuple[int, ...]]) -> bool:
    """Tell whether the module's stacks are E x I x O rather than E x O x I.

    Most experts of transformers have the attribute `is_transposed`. In the others, the first stack
    maps H features to F or 2 F and the next maps F to H: read as E x O x I, the inputs of the first
    are the outputs of the next. If only the transposed reading fits, it holds (Llama 4).
    """
    known = getattr(module, "is_transposed", None)
    if isinstance(known, bool):
        return known
    usual = all(first[2] == then[1] for first, then in pairwise(shapes))
    return not usual and all(first[1] == then[2] for first, then in pairwise(shapes))


def _named_counts(module: nn.Module) -> set[int]:
    return {value for key, value in vars(module).items() if "experts" in key and type(value) is int}


def _is_gate(name: str, module: nn.Module, weight: Tensor, experts: set[int]) -> bool:
    outputs = weight.shape[1 if isinstance(module, Conv1D) else 0] if weight.ndim == 2 else 0
    if outputs == 1:
        return isinstance(module, nn.Linear | Conv1D)
    return outputs in _named_counts(module) or (outputs in experts and name.rsplit(".", 1)[-1] == "gate")
