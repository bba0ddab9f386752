"""Which weights of a model are pruned, and how many zeros each of them gets."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from shears.blockwise.matrices import Matrix, block_matrices, kept_dense, uncovered_parameters
from shears.config import SparsifyConfig
from shears.config.notation import kept_of_every
from shears.config.targets import matching
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears
from shears.sparsity.allocation.overall import with_overrides, zero_counts
from shears.sparsity.masks import Pattern

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The weights to prune, by block, and the share of the blocks' weights that they are not."""

    by_block: Mapping[str, Sequence[Matrix]]
    uncovered: float

    @property
    def matrices(self) -> list[Matrix]:
        """All of them, in the order of the blocks."""
        return [matrix for matrices in self.by_block.values() for matrix in matrices]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights by name."""
        return {matrix.name: matrix.shape[0] * matrix.shape[1] for matrix in self.matrices}


def linear_name(matrix: Matrix) -> str:
    """Return the name by which people mean a weight: all experts of a stack have one."""
    return matrix.name if matrix.index is None else matrix.name.rpartition(".")[0]


def choose(model: nn.Module, config: SparsifyConfig) -> Chosen:
    """Return the weights of the decoder blocks that a target matches (all for no target) and `skip` does not.

    Parameters may be on the meta device. InputError where nothing is left, where a name matches nothing, and where an
    N:M pattern does not fit. What is in no linear is said loudly.
    """
    prefix, blocks = decoder_blocks(model)
    known = _distinct(
        model, {f"{prefix}.{i}": block_matrices(f"{prefix}.{i}", block) for i, block in enumerate(blocks)}
    )
    names = list(dict.fromkeys(linear_name(matrix) for matrices in known.values() for matrix in matrices))
    if not names:
        raise InputError(
            f"the model must have linears in its decoder blocks; {type(model).__name__} has none in {prefix}"
        )
    wanted = set(matching(names, config.targets) if config.targets else names)
    if config.skip:  # names of linears outside the blocks, such as lm_head, are dense anyway
        wanted -= set(matching([*names, *(name for name in linears(model) if name not in names)], config.skip))
    if not wanted:
        raise InputError(f"there must be linears left to prune, skip={','.join(config.skip)} leaves none")
    by_block = {
        name: [matrix for matrix in matrices if linear_name(matrix) in wanted] for name, matrices in known.items()
    }
    uncovered = _report_uncovered(blocks, prefix, by_block)
    chosen = Chosen(by_block, uncovered)
    _check_groups(chosen, config.pattern)
    return chosen


def _distinct(model: nn.Module, known: Mapping[str, Sequence[Matrix]]) -> dict[str, list[Matrix]]:
    """Leave out what is another name of a weight before it: some blocks share weights."""
    seen: set[tuple[int, int | None]] = set()
    found: dict[str, list[Matrix]] = {}
    for block, matrices in known.items():
        found[block] = []
        for matrix in matrices:
            place = (id(model.get_parameter(matrix.parameter)), matrix.index)
            if place not in seen:
                seen.add(place)
                found[block].append(matrix)
    return found


def zeros_by_weight(
    chosen: Chosen, config: SparsifyConfig, allocate: Callable[[], Mapping[str, float]]
) -> dict[str, int]:
    """Return the number of zeros of every weight; together they are the sparsity asked for, to one weight.

    `allocate` gives sparsities by weight, and is not called for N:M, which is the same everywhere.
    """
    if ":" in config.pattern:
        pattern = Pattern.parse(config.pattern)
        return {matrix.name: pattern.num_zeros(config.sparsity, matrix.shape) for matrix in chosen.matrices}
    allocation = allocate()
    fixed = _overrides(chosen, config.sparsity_of)
    if fixed:
        allocation = with_overrides(allocation, fixed, chosen.sizes, config.sparsity)
    return zero_counts(allocation, chosen.sizes)


def _overrides(chosen: Chosen, sparsity_of: Mapping[str, float]) -> dict[str, float]:
    """Return the sparsity of every weight that a name of `sparsity_of` matches; the last name that does wins."""
    names = list(dict.fromkeys(map(linear_name, chosen.matrices)))
    fixed: dict[str, float] = {}
    for target, sparsity in sparsity_of.items():
        fixed |= dict.fromkeys(matching(names, [target]), sparsity)
    return {matrix.name: fixed[linear_name(matrix)] for matrix in chosen.matrices if linear_name(matrix) in fixed}


def _check_groups(chosen: Chosen, pattern: str) -> None:
    _, size = kept_of_every(pattern) or (1, 1)
    for matrix in chosen.matrices:
        if matrix.shape[1] % size:
            raise InputError(
                f"pattern {pattern} needs a multiple of {size} inputs, {matrix.name} has {matrix.shape[1]}; skip it"
            )


def _report_uncovered(blocks: nn.ModuleList, prefix: str, by_block: Mapping[str, Sequence[Matrix]]) -> float:
    """Return the share of block weights outside the chosen ones; warn of those that are no linears at all."""
    weights = [weight for name, weight in blocks.named_parameters() if weight.ndim >= 2 and not name.endswith("bias")]
    total = sum(weight.numel() for weight in weights)
    beyond = {
        f"{prefix}.{index}.{name}": size
        for index, block in enumerate(blocks)
        for name, size in uncovered_parameters(block).items()
    }
    if beyond:
        logger.warning(
            "%.1f %% of the block weights are in no linear and stay DENSE (%s and %d more)",
            100 * sum(beyond.values()) / total,
            max(beyond, key=lambda name: beyond[name]),
            len(beyond) - 1,
        )
    routers = sum(sum(kept_dense(block).values()) for block in blocks)
    if routers:
        logger.info("%.2f %% of the block weights choose experts and stay dense", 100 * routers / total)
    covered = sum(matrix.shape[0] * matrix.shape[1] for matrices in by_block.values() for matrix in matrices)
    count = len({linear_name(matrix) for matrices in by_block.values() for matrix in matrices})
    logger.info("pruning %d linears, %.1f %% of the block weights", count, 100 * covered / total)
    return 1 - covered / total
