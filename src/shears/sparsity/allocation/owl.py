"""OWL (arXiv 2310.05175): lower sparsity for the blocks whose scores have many outliers."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError
from shears.models.blockwise.capture import InputNorms
from shears.models.blockwise.walk import BlockRun, walk_blocks
from shears.sparsity.allocation.overall import HIGHEST_SPARSITY, check_reach, shifted
from shears.sparsity.methods.scores import magnitude_scores, wanda_scores
from shears.sparsity.plan import CalibrationRun, Chosen

Scores = Float[Tensor, "_ _"]


def owl_sparsities(run: CalibrationRun, chosen: Chosen, sparsity: float) -> dict[str, float]:
    """Return a sparsity by block, from the outliers of its Wanda scores on the dense model."""
    shares: dict[str, float] = {}

    def visit(block: BlockRun) -> None:
        matrices = chosen.by_block[block.name]
        if matrices:
            norms = InputNorms()
            block.measure(matrices, norms.receive)
            scores = block_scores([(matrix.view(block.model), norms.of(matrix)) for matrix in matrices])
            shares[block.name] = outlier_share(scores)

    with run.activations() as hidden:
        walk_blocks(run.walk(hidden), visit, "outliers")
    sizes = {block: sum(matrix.shape[0] * matrix.shape[1] for matrix in chosen.by_block[block]) for block in shares}
    by_block = owl(shares, sizes, sparsity)
    return {matrix.name: by_block[block] for block in shares for matrix in chosen.by_block[block]}


@torch.no_grad()
def block_scores(weights: Sequence[tuple[Scores, Float[Tensor, " _"] | None]]) -> list[Scores]:
    """Return the Wanda scores of a block's (weight, input norms) that tokens reached.

    Return all magnitudes if no token reached any; the two are on different scales.
    """
    reached = [wanda_scores(weight, norms) for weight, norms in weights if norms is not None]
    return reached or [magnitude_scores(weight) for weight, _ in weights]


def outlier_share(scores: Sequence[Scores], multiple: float = 5.0) -> float:
    """Return the share of scores above `multiple` times their mean (eq. 1), over a whole block."""
    count = sum(part.numel() for part in scores)
    mean = math.fsum(float(part.sum(dtype=torch.float64)) for part in scores) / count
    return sum(int((part > multiple * mean).sum()) for part in scores) / count


def owl(
    outlier_shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float = 0.08
) -> dict[str, float]:
    """Return sparsities that fall linearly with the outlier share, in a band of width 2 * spread.

    The band is shifted to the overall sparsity and cut at 0 and HIGHEST_SPARSITY. InputError if a
    share is not finite or the overall sparsity is out of reach.
    """
    if not all(map(math.isfinite, outlier_shares.values())) or not spread >= 0:
        raise InputError("outlier shares must be finite and the spread at least 0; check the calibration text")
    check_reach(
        0.0, HIGHEST_SPARSITY * sum(sizes.values()), sizes, sparsity, f"sparsities of at most {HIGHEST_SPARSITY}"
    )
    least = min(outlier_shares.values())
    span = max(outlier_shares.values()) - least or 1.0
    band = {name: -2 * spread * ((share - least) / span) for name, share in outlier_shares.items()}
    return shifted(band, sizes, sparsity * sum(sizes.values()))
