"""The sparsity of every weight by the named rule, with what the rule has to measure."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shears.blockwise.activations import Activations
from shears.blockwise.capture import InputNorms
from shears.blockwise.sources import BlockSource
from shears.blockwise.walk import Batches, BlockRun, Context, Walk, walk_blocks
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.sparsity.allocation.global_magnitude import global_counts
from shears.sparsity.allocation.overall import outlier_share, owl, uniform
from shears.sparsity.allocation.sensitivity import sensitivity_allocation
from shears.sparsity.methods.scores import magnitude_scores, wanda_scores
from shears.sparsity.plan import Chosen

NewActivations = Callable[..., Activations]  # of a part of the budget: all of it by default, a half for 2


def allocate(
    source: BlockSource, batches: Batches, chosen: Chosen, config: SparsifyConfig, new_activations: NewActivations,
    context: Context,
) -> Mapping[str, float]:  # fmt: skip
    """Return the sparsity of every chosen weight, by name; their size-weighted mean is the sparsity asked for."""
    if config.pattern == "global":
        return _global(source, chosen, config.sparsity)
    if config.allocation == "owl":
        return _owl(source, batches, chosen, config.sparsity, new_activations, context)
    if config.allocation == "sensitivity":
        return sensitivity_allocation(source, batches, chosen, config.sparsity, new_activations, context)
    return uniform(chosen.sizes, config.sparsity)


def _global(source: BlockSource, chosen: Chosen, sparsity: float) -> dict[str, float]:
    sizes = chosen.sizes

    def weights() -> Iterator[tuple[str, Float[Tensor, "_ _"]]]:
        for index, matrices in enumerate(chosen.by_block.values()):
            with source.opened(index):
                for matrix in matrices:
                    yield matrix.name, matrix.view(source.model)

    counts = global_counts(weights, round(sum(sizes.values()) * sparsity))
    emptied = [name for name, count in counts.items() if count == sizes[name]]
    if emptied:
        raise InputError(
            f"pattern global must leave every linear some weights, {emptied[0]} would lose all; "
            "skip it, lower the sparsity or use pattern layer"
        )
    return {name: count / sizes[name] for name, count in counts.items()}


def _owl(
    source: BlockSource, batches: Batches, chosen: Chosen, sparsity: float, new_activations: NewActivations,
    context: Context,
) -> dict[str, float]:  # fmt: skip
    """Return one sparsity a block, by the share of outliers among its Wanda scores on the dense model."""
    shares: dict[str, float] = {}

    def visit(run: BlockRun) -> None:
        norms, matrices = InputNorms(), chosen.by_block[run.name]
        if matrices:
            run.measure(matrices, norms.receive)
            found = [(matrix.view(run.model), norms.of(matrix)) for matrix in matrices]
            shares[run.name] = outlier_share(_scores(found))

    with new_activations() as hidden:
        walk_blocks(Walk(source, batches, hidden, context), visit, "outliers")
    sizes = {block: sum(matrix.shape[0] * matrix.shape[1] for matrix in chosen.by_block[block]) for block in shares}
    by_block = owl(shares, sizes, sparsity)
    return {matrix.name: by_block[block] for block in shares for matrix in chosen.by_block[block]}


@torch.no_grad()
def _scores(found: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"] | None]]) -> list[Float[Tensor, "_ _"]]:
    """Return the Wanda scores of a block's weights that tokens reached, for magnitudes are of another scale.

    Where none was reached, magnitudes of all.
    """
    reached = [wanda_scores(weight, norms) for weight, norms in found if norms is not None]
    return reached or [magnitude_scores(weight) for weight, _ in found]
