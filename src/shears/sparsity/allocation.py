"""Sparsities by the estimated rise of the loss, from squared gradients on a few sequences.

Setting weight w_oi to zero costs about w_oi^2 * F_oi / 2, with F the diagonal of the Fisher
information (optimal brain damage, LeCun et al. 1990). F is summed over sequences and approximated
by the product of its row and column sums over its total, because its entries from few sequences are
noise. At the optimum the next zero costs the same everywhere.

Shapes: O output features, I input features of a linear.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError
from shears.models.activations import BUDGET, Activations
from shears.models.blocks import Matrix
from shears.models.sources import BlockSource
from shears.models.walk import Batches, BlockRun, Context, Walk, differentiable
from shears.progress import track

SEQUENCES = 4  # of calibration text; gradients are taken sequence by sequence
STRENGTH = 0.35  # step from uniform to optimum; the whole step is too far (docs/internals/log.md)
REACH = 0.3  # largest distance of the optimum from the overall sparsity
HIGHEST_SPARSITY = 0.99
SAMPLE = 1 << 16  # weights of a matrix whose costs are sorted
POINTS = 101  # of a cost curve

Fisher = dict[Matrix, tuple[Float[Tensor, " O"], Float[Tensor, " I"]]]
Point = tuple[float, float]  # a sparsity and its cost


def sensitivity_sparsities(
    source: BlockSource,
    batches: Batches,
    by_block: Mapping[str, Sequence[Matrix]],
    sparsity: float,
    context: Context,
    folder: Path | None,
) -> dict[str, float]:
    """Return the sparsity of every weight; the overall one without gradients (unused experts).

    One block is in memory at a time: the forward writes every block's inputs to files, the backward
    computes each block again, from the last one on. InputError if gradients are not finite.
    """
    sequences = [sequence[None] for batch in batches for sequence in batch][:SEQUENCES]
    curves: dict[str, list[Point]] = {}
    with Activations(BUDGET, folder) as hidden, Activations(0, folder) as kept:
        walk = Walk(source, sequences, hidden, context)
        for index in track(range(len(walk)), "measuring sensitivity (forward)", len(walk), "blocks"):
            for states in walk.hidden:
                kept.append(states)
            with torch.no_grad(), walk.advancing(index) as block:
                if index + 1 == len(walk):
                    outputs = list(block.outputs())
        gradients: list[Tensor] = []
        for index, states in enumerate(outputs):
            tokens = walk.batches[index].to(states.device)
            with torch.enable_grad():
                leaf = states.detach().requires_grad_()
                logits = walk.logits(index, leaf)[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
            gradients += torch.autograd.grad(loss, leaf)
        for index in track(range(len(walk) - 1, -1, -1), "measuring sensitivity (backward)", len(walk), "blocks"):
            inputs = [kept[index * len(sequences) + number] for number in range(len(sequences))]
            with walk.opened(index) as block:
                fisher = _backward(block, inputs, gradients, by_block[block.name])
                for matrix, sums in fisher.items():
                    if sums[0].any():  # else no token reaches the expert
                        curves[matrix.name] = _curve(matrix.view(block.model), sums)
    low = max(sparsity - REACH, 0.0)
    high = max(min(sparsity + REACH, HIGHEST_SPARSITY), sparsity)
    sizes = {matrix.name: math.prod(matrix.shape) for matrices in by_block.values() for matrix in matrices}
    optimum = by_marginal_cost(curves, sizes, sparsity, low, high)
    return {name: sparsity + STRENGTH * (optimum.get(name, sparsity) - sparsity) for name in sizes}


def _backward(block: BlockRun, inputs: Sequence[Tensor], gradients: list[Tensor], matrices: Sequence[Matrix]) -> Fisher:
    """Return row and column sums of the squared weight gradients.

    `gradients` are those of the block's outputs and are replaced by those of its inputs.
    """
    fisher: Fisher = {}
    parameters = {each.parameter: block.model.get_parameter(each.parameter) for each in matrices}
    with differentiable(list(parameters.values())), torch.enable_grad():
        for index, states in enumerate(inputs):
            leaf = states.detach().requires_grad_()
            output = block.forward(index, leaf)
            gradients[index], *of_weights = torch.autograd.grad(
                output, [leaf, *parameters.values()], gradients[index], allow_unused=True
            )
            by_name = dict(zip(parameters, of_weights, strict=True))
            for matrix in matrices:
                if (gradient := by_name[matrix.parameter]) is not None:  # else no token reaches it
                    squares = matrix.cut(gradient).float().square()
                    rows, columns = fisher.get(matrix, (0.0, 0.0))
                    fisher[matrix] = (rows + squares.sum(1), columns + squares.sum(0))
    return fisher


def _curve(weight: Float[Tensor, "O I"], sums: tuple[Float[Tensor, " O"], Float[Tensor, " I"]]) -> list[Point]:
    """Return the cost of a weight's cheapest zeros at evenly spread sparsities."""
    rows, columns = sums
    squares = weight.float().square() * rows[:, None] * (columns / rows.sum().clamp_min(1e-30))
    stride = max(squares.numel() // SAMPLE, 1)
    while math.gcd(stride, weight.shape[1]) > 1:  # so that the sample is of all inputs
        stride += 1
    costs = squares.flatten()[::stride].double().cpu().sort().values
    grid = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    total = torch.cat([costs.new_zeros(1), costs.cumsum(0)]) * (squares.numel() / len(costs))
    if not torch.isfinite(total).all():
        raise InputError("gradients must be finite, some are not; check the weights and the text")
    return list(zip(grid.tolist(), total[(grid * len(costs)).round().long()].tolist(), strict=True))


def by_marginal_cost(
    curves: Mapping[str, Sequence[Point]], sizes: Mapping[str, int], sparsity: float, low: float, high: float
) -> dict[str, float]:
    """Return the sparsities in [low, high] of least total cost, for the curves' convex hulls.

    A curve's points go from sparsity 0 to 1, linear between them. At the optimum of convex costs
    all weights have one marginal cost (the Lagrange multiplier): segments of the curves are taken
    in the order of their slopes until the zeros are reached, those of one slope in equal shares.
    """
    hulls = {name: _hull(_between(curve, low, high)) for name, curve in curves.items()}
    sparsities = {name: hull[0][0] for name, hull in hulls.items()}
    missing = sparsity * sum(sizes[name] for name in curves)
    missing -= math.fsum(sizes[name] * share for name, share in sparsities.items())
    segments = sorted(
        (_slope(start, end) / sizes[name], name, end[0] - start[0])
        for name, hull in hulls.items()
        for start, end in pairwise(hull)
    )
    for _, group in groupby(segments, key=lambda segment: segment[0]):
        lengths = [(name, length) for _, name, length in group]
        room = math.fsum(length * sizes[name] for name, length in lengths)
        share = min(max(missing / room, 0.0), 1.0)
        for name, length in lengths:
            sparsities[name] += share * length
        missing -= share * room
    return {name: min(value, hulls[name][-1][0]) for name, value in sparsities.items()}


def _between(points: Sequence[Point], low: float, high: float) -> list[Point]:
    found = [point for point in points if low < point[0] < high]
    for place in (low, high):
        (left, before), (right, after) = next(pair for pair in pairwise(points) if pair[0][0] <= place <= pair[1][0])
        found.append((place, before + (after - before) * (place - left) / (right - left)))
    return sorted(found)


def _hull(points: Sequence[Point]) -> list[Point]:
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(start: Point, end: Point) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
