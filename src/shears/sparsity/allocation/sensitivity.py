"""Sparsities by the estimated rise of the loss, from squared gradients on a few sequences.

Setting weight w_oi to zero costs about w_oi^2 * F_oi / 2, with F the diagonal of the Fisher
information (optimal brain damage, LeCun et al. 1990). F is summed over sequences and approximated
by the product of its row and column sums over its total, because its entries from few sequences are
noise. At the optimum the next zero costs the same everywhere.

Shapes: B sequences, T tokens, H hidden features, O output features, I input features of a linear.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shears.models.blockwise.activations import Activations
from shears.models.blockwise.matrices import Matrix
from shears.models.blockwise.walk import BlockRun, Walk, differentiable
from shears.progress import track
from shears.sparsity.allocation.overall import HIGHEST_SPARSITY, Curve, by_marginal_cost
from shears.sparsity.plan import CalibrationRun, Chosen

SEQUENCES = 4  # of calibration text; gradients are taken sequence by sequence
STRENGTH = 0.35  # step from uniform to the optimum; the whole step is too far
REACH = 0.3  # largest distance of the optimum from the overall sparsity
SAMPLE = 1 << 16  # weights of a matrix whose costs are sorted
POINTS = 101  # of a cost curve

Fisher = dict[Matrix, tuple[Float[Tensor, " O"], Float[Tensor, " I"]]]


def sensitivity_sparsities(run: CalibrationRun, chosen: Chosen, sparsity: float) -> dict[str, float]:
    """Return the sparsity of every weight; the overall one without gradients (unused experts).

    The model is unchanged, and one block is in memory at a time: the forward keeps every block's
    inputs, the backward computes each block again, from the last one on. InputError if gradients
    are not finite.
    """
    sequences = [sequence[None] for batch in run.batches for sequence in batch][:SEQUENCES]
    curves: dict[str, Curve] = {}
    with run.activations(parts=2) as hidden, run.activations(parts=2) as kept:
        walk = run.walk(hidden, sequences)
        _forward(walk, kept)
        with run.source.with_head():
            gradients = [_loss_gradient(walk, index, states) for index, states in enumerate(walk.hidden)]
        for index in track(range(len(walk) - 1, -1, -1), "sensitivity", len(walk), "block"):
            inputs = [kept[index * len(sequences) + number] for number in range(len(sequences))]
            with walk.opened(index) as block:
                fisher = _backward(block, inputs, gradients, chosen.by_block[block.name])
                for matrix, sums in fisher.items():
                    if sums[0].any():  # else no token reaches the expert
                        curves[matrix.name] = _curve(matrix.view(block.model), sums)
    low = max(sparsity - REACH, 0.0)
    high = max(min(sparsity + REACH, HIGHEST_SPARSITY), sparsity)
    sizes = chosen.sizes
    optimum = by_marginal_cost(curves, {name: sizes[name] for name in curves}, sparsity, low, high) if curves else {}
    return {name: sparsity + STRENGTH * (optimum.get(name, sparsity) - sparsity) for name in sizes}


@torch.no_grad()
def _forward(walk: Walk, kept: Activations) -> None:
    """Send the sequences through all blocks, and store the inputs of every block in `kept`."""
    for index in track(range(len(walk)), "sensitivity, forward", len(walk), "block"):
        for states in walk.hidden:
            kept.append(states)
        with walk.opened(index) as run:
            walk.advance(run)


def _loss_gradient(walk: Walk, index: int, states: Float[Tensor, "1 T H"]) -> Float[Tensor, "1 T H"]:
    """Return the gradient of a sequence's summed loss with respect to the last block's outputs."""
    tokens = walk.batches[index].to(states.device)
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        logits = walk.logits(index, leaf)[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]


def _backward(block: BlockRun, inputs: Sequence[Tensor], gradients: list[Tensor], matrices: Sequence[Matrix]) -> Fisher:
    """Return row and column sums of the squared weight gradients.

    `gradients` are those of the block's outputs and are replaced by those of its inputs.
    """
    fisher: Fisher = {}
    parameters = {matrix.parameter: block.model.get_parameter(matrix.parameter) for matrix in matrices}
    with differentiable(list(parameters.values())), torch.enable_grad():
        for index, states in enumerate(inputs):
            leaf = states.detach().requires_grad_()
            output = block.forward(index, leaf)
            gradients[index], *of_weights = torch.autograd.grad(
                output, [leaf, *parameters.values()], gradients[index], allow_unused=True
            )
            by_name = dict(zip(parameters, of_weights, strict=True))
            for matrix in matrices:
                _add(fisher, matrix, by_name[matrix.parameter])
    return fisher


def _add(fisher: Fisher, matrix: Matrix, gradient: Tensor | None) -> None:
    if gradient is None:  # the sequence does not reach the linear or the expert
        return
    squares = matrix.cut(gradient).float().square()
    rows, columns = fisher.get(matrix, (0.0, 0.0))
    fisher[matrix] = (rows + squares.sum(1), columns + squares.sum(0))


def _curve(weight: Float[Tensor, "O I"], sums: tuple[Float[Tensor, " O"], Float[Tensor, " I"]]) -> Curve:
    """Return the cost of a weight's cheapest zeros at evenly spread sparsities."""
    rows, columns = sums
    squares = weight.float().square() * rows[:, None] * (columns / rows.sum().clamp_min(1e-30))
    costs = squares.flatten()[:: _stride(weight.shape)].double().cpu().sort().values
    grid = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), costs.cumsum(0)]) * (squares.numel() / len(costs))
    return grid, total[(grid * len(costs)).round().long()]


def _stride(shape: Sequence[int]) -> int:
    """Return the step of a sample of about SAMPLE weights; it has no factor of I."""
    stride = max(math.prod(shape) // SAMPLE, 1)
    while math.gcd(stride, shape[1]) > 1:
        stride += 1
    return stride
