"""How much less int4 errs than rounding to nearest when inputs are known, on a sample of the blocks.

Packages round on a calibration text or are trained on the grid. To round a whole model so would
take as long as making a package; the loss that rounding adds is proportional to its squared output
error, so the share of a few blocks tells it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from shears.models.blocks import decoder_blocks
from shears.models.blockwise.capture import InputMoments, capturing
from shears.models.blockwise.matrices import Matrix, block_matrices
from shears.quantization.grid import quantize
from shears.quantization.with_inputs import output_error, round_with_inputs

SAMPLE = (0.25, 0.75)  # places of the blocks, as shares of the depth
READS = 6  # passes over a text of 1,024 tokens that the sample takes as long as


@torch.no_grad()
def share_of_nearest(
    network: PreTrainedModel, text: Sequence[Int[Tensor, "_ _"]], held_out: Int[Tensor, "_ _"]
) -> float:
    """Return the squared output error of int4 that `text` rounds, as a share of that of rounding to nearest.

    Both errors are of the tokens of `held_out`. 1 where nothing errs, at most 1.
    """
    prefix, blocks = decoder_blocks(network)
    places = sorted({int(share * len(blocks)) for share in SAMPLE})
    matrices = [
        matrix
        for place in places
        for matrix in block_matrices(f"{prefix}.{place}", blocks[place])
        if matrix.index is None
    ]
    known, unseen = (_moments(network, matrices, batches) for batches in (text, [held_out]))
    error = nearest = 0.0
    for matrix in matrices:
        inputs, test = known.of(matrix), unseen.of(matrix)
        if inputs is None or test is None or not inputs.any():
            continue
        weight = matrix.view(network).float()
        rounded = round_with_inputs(weight, weight != 0, inputs, "int4")
        error += float(output_error(weight, rounded, test).double().sum())
        nearest += float(output_error(weight, quantize(weight, "int4"), test).double().sum())
    return min(error / nearest, 1.0) if nearest > 0 else 1.0


def _moments(
    network: PreTrainedModel, matrices: Sequence[Matrix], batches: Sequence[Int[Tensor, "_ _"]]
) -> InputMoments:
    moments = InputMoments()
    with capturing(network, network, matrices, moments.receive):
        for ids in batches:
            network(ids, use_cache=False, logits_to_keep=1)
    return moments
