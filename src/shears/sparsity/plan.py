"""Choose the weights to prune and the number of zeros of each."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shears.config import SparsifyConfig
from shears.config.notation import kept_of_every, num_bytes
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears, matching
from shears.models.blockwise.activations import Activations
from shears.models.blockwise.matrices import Matrix, block_matrices, kept_dense, uncovered_parameters
from shears.models.blockwise.sources import BlockSource
from shears.models.blockwise.walk import Batches, Walk
from shears.models.devices import autocast
from shears.sparsity.allocation.overall import with_overrides
from shears.sparsity.masks import Pattern, zero_counts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The weights to prune, by block, and the share of the blocks' weights that is not pruned."""

    by_block: Mapping[str, Sequence[Matrix]]
    uncovered: float

    @property
    def matrices(self) -> list[Matrix]:
        """All weights to prune, in the order of the blocks."""
        return [matrix for matrices in self.by_block.values() for matrix in matrices]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of elements of every weight, by name."""
        return {matrix.name: matrix.shape[0] * matrix.shape[1] for matrix in self.matrices}


@dataclass(frozen=True)
class CalibrationRun:
    """A model, calibration batches and the settings of forwards; `folder` takes spilled states.

    Methods that look at weights alone need no batches.
    """

    source: BlockSource
    batches: Batches
    config: SparsifyConfig
    folder: Path | None = None

    @property
    def budget(self) -> int:
        """Bytes of memory for hidden states."""
        return num_bytes(self.config.activation_budget)

    def activations(self, parts: int = 1) -> Activations:
        """Return an empty store of hidden states with a share of the budget: a half for 2."""
        return Activations(self.budget // parts, self.folder)

    def context(self) -> AbstractContextManager[object]:
        """Return the autocast context of the forwards."""
        return autocast(self.config.precision, self.source.device)

    def walk(self, hidden: Activations, batches: Batches | None = None) -> Walk:
        """Return a walk of the batches through the blocks with hidden states in `hidden`."""
        return Walk(self.source, self.batches if batches is None else batches, hidden, self.context)


def linear_name(matrix: Matrix) -> str:
    """Return the name that people use for a weight: all experts of a stack share one."""
    return matrix.name if matrix.index is None else matrix.name.rpartition(".")[0]


def zeros_by_weight(
    chosen: Chosen, config: SparsifyConfig, sparsities: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Return the number of zeros of every weight, in all the configured share, to one weight.

    `sparsities` has one for every weight; None gives all of them the same, as a pattern N:M does.
    """
    if ":" in config.pattern:
        pattern = Pattern.parse(config.pattern)
        return {matrix.name: pattern.num_zeros(matrix.shape) for matrix in chosen.matrices}
    sizes = chosen.sizes
    if sparsities is None:
        sparsities = dict.fromkeys(sizes, config.sparsity)
    if config.sparsity_of:
        sparsities = with_overrides(sparsities, _overrides(chosen, config.sparsity_of), sizes, config.sparsity)
    return zero_counts(sparsities, sizes)


def _overrides(chosen: Chosen, sparsity_of: Mapping[str, float]) -> dict[str, float]:
    """Return the sparsity of every weight that `sparsity_of` names; the last match wins."""
    names = list(dict.fromkeys(map(linear_name, chosen.matrices)))
    by_linear: dict[str, float] = {}
    for target, sparsity in sparsity_of.items():
        by_linear |= dict.fromkeys(matching(names, [target]), sparsity)
    return {
        matrix.name: by_linear[linear_name(matrix)] for matrix in chosen.matrices if linear_name(matrix) in by_linear
    }


def choose(model: nn.Module, config: SparsifyConfig) -> Chosen:
    """Return the weights of the decoder blocks that `skip` does not match.

    Parameters may be on the meta device. Block weights that are in no linear are logged. InputError
    if nothing is left to prune, a name matches nothing, or an N:M pattern does not fit a linear.
    """
    prefix, blocks = decoder_blocks(model)
    by_block = _distinct_matrices(model, prefix, blocks)
    names = list(dict.fromkeys(linear_name(matrix) for matrices in by_block.values() for matrix in matrices))
    if not names:
        raise InputError(
            f"the model must have linears in its decoder blocks; {type(model).__name__} has none in {prefix}"
        )
    targeted = set(names)
    if config.skip:  # may name linears outside of the blocks too, such as lm_head
        targeted -= set(matching(list(dict.fromkeys([*names, *linears(model)])), config.skip))
    if not targeted:
        raise InputError(f"there must be linears left to prune, skip={','.join(config.skip)} leaves none")
    by_block = {
        name: [matrix for matrix in matrices if linear_name(matrix) in targeted] for name, matrices in by_block.items()
    }
    chosen = Chosen(by_block, _report_uncovered(blocks, prefix, by_block))
    _, size = kept_of_every(config.pattern) or (1, 1)
    for matrix in chosen.matrices:
        if matrix.shape[1] % size:
            raise InputError(
                f"pattern {config.pattern} needs a multiple of {size} inputs, {matrix.name} has {matrix.shape[1]}; "
                "skip it"
            )
    return chosen


def _distinct_matrices(model: nn.Module, prefix: str, blocks: nn.ModuleList) -> dict[str, list[Matrix]]:
    """Return the weights by block; a weight that blocks share is in the first of them."""
    seen: set[tuple[int, int | None]] = set()
    by_block: dict[str, list[Matrix]] = {}
    for index, block in enumerate(blocks):
        name = f"{prefix}.{index}"
        by_block[name] = []
        for matrix in block_matrices(name, block):
            identity = (id(model.get_parameter(matrix.parameter)), matrix.index)
            if identity not in seen:
                seen.add(identity)
                by_block[name].append(matrix)
    return by_block


def _report_uncovered(blocks: nn.ModuleList, prefix: str, by_block: Mapping[str, Sequence[Matrix]]) -> float:
    """Return the share of block weights that are not chosen; log those in no linear."""
    weights = [weight for name, weight in blocks.named_parameters() if weight.ndim >= 2 and not name.endswith("bias")]
    total = sum(weight.numel() for weight in weights)
    outside = {
        f"{prefix}.{index}.{name}": size
        for index, block in enumerate(blocks)
        for name, size in uncovered_parameters(block).items()
    }
    if outside:
        message = "%.1f %% of the block weights are in no linear and stay DENSE (%s and %d more)"
        largest = max(outside, key=outside.__getitem__)
        logger.warning(message, 100 * sum(outside.values()) / total, largest, len(outside) - 1)
    routers = sum(sum(kept_dense(block).values()) for block in blocks)
    if routers:
        logger.info("%.2f %% of the block weights choose experts and stay dense", 100 * routers / total)
    covered = sum(matrix.shape[0] * matrix.shape[1] for matrices in by_block.values() for matrix in matrices)
    count = len({linear_name(matrix) for matrices in by_block.values() for matrix in matrices})
    logger.info("pruning %d linears, %.1f %% of the block weights", count, 100 * covered / total)
    return 1 - covered / total
