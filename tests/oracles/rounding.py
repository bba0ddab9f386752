"""Rounding with the inputs known, restated literally and slowly in float64; knows nothing of shears.

Every step is a search: a scale is the one of ten whose rounded weights err least, a code is one of all codes, and a
move of the columns to the right is a least-squares problem that is solved anew for every weight.
"""

import torch
from torch import Tensor

from tests.oracles.obs import damped, output_error, reaction
from tests.oracles.packed import BLOCK, fp16, fp32

RATIOS = [1 - step / 20 for step in range(10)]
Grid = tuple[float, int]  # scale and zero point


def numbers(grid: Grid) -> list[float]:
    """Return the 16 numbers of a grid."""
    return [grid[0] * (code - grid[1]) for code in range(16)]


def nearest(number: float, grid: Grid) -> float:
    """Return the grid's nearest number."""
    return min(numbers(grid), key=lambda candidate: abs(candidate - number))


def grid_of(low: float, high: float) -> Grid:
    """Return the grid for weights from low to high."""
    scale = fp16(fp32(high - low) / 15)
    return scale, min(max(round(fp32(-low / scale)), 0), 15) if scale else 0


def searched(row: list[float], moments: list[float]) -> Grid:
    """Return the grid of a block of a row that errs least, every input weighted by its moment."""
    low, high = min(0.0, *row), max(0.0, *row)
    grids = [grid_of(fp32(low * ratio), fp32(high * ratio)) for ratio in RATIOS]

    def error(grid: Grid) -> float:
        return sum(m * (nearest(w, grid) - w) ** 2 for w, m in zip(row, moments, strict=True))

    return min(grids, key=error)


def rounded(
    weight: Tensor, kept: Tensor, hessian: Tensor, damping: float, sweeps: int, missed: Tensor | None = None
) -> Tensor:
    """Return the rounded weight; `missed` (I x O) are the products of the inputs with what its outputs lack."""
    ridge = damped(hessian, damping)
    missed = torch.zeros(weight.T.shape) if missed is None else missed
    aims = weight.double() + torch.linalg.solve(ridge, missed.double()).T
    moments = hessian.diag().tolist()
    out = torch.zeros(weight.shape, dtype=torch.float64)
    for row in range(weight.shape[0]):
        target = aims[row]
        starts = range(0, weight.shape[1], BLOCK)
        grids = [searched(weight[row, s : s + BLOCK].tolist(), moments[s : s + BLOCK]) for s in starts]
        line = swept(target.clone(), kept[row], ridge, grids)
        for sweep in range(sweeps):
            for block, start in enumerate(starts):
                for column in range(start, min(start + BLOCK, len(line))):
                    if kept[row, column]:
                        line[column] = best(line, target, ridge, column, grids[block])
                if sweep + 1 < sweeps:
                    grids[block] = fitted(line, target, ridge, start, grids[block])
        out[row] = line
    plain = torch.stack([rounded_to_nearest(line, moments) for line in weight.double()])
    errors = [output_error(weight, one, hessian) - 2 * ((one - weight) * missed.T).sum(1) for one in (out, plain)]
    worse = errors[0] > errors[1]
    return torch.where(worse[:, None], plain, out)


def rounded_to_nearest(line: Tensor, moments: list[float]) -> Tensor:
    """Return a row rounded to nearest between its smallest and its largest weights."""
    out = line.clone()
    for start in range(0, len(line), BLOCK):
        row = line[start : start + BLOCK].tolist()
        grid = grid_of(min(0.0, *row), max(0.0, *row))
        out[start : start + BLOCK] = torch.tensor([nearest(w, grid) for w in row], dtype=torch.float64)
    return out


def swept(line: Tensor, kept: Tensor, ridge: Tensor, grids: list[Grid]) -> Tensor:
    """Round a row from left to right; the columns to the right make up for each error, where they are kept."""
    for column in range(len(line)):
        if not kept[column]:
            line[column] = 0.0
            continue
        number = nearest(float(line[column]), grids[column // BLOCK])
        if column + 1 < len(line):
            moved = line[column + 1 :] + (line[column] - number) * reaction(ridge, column)
            line[column + 1 :] = torch.where(kept[column + 1 :], moved, line[column + 1 :])
        line[column] = number
    return line


def best(line: Tensor, target: Tensor, ridge: Tensor, column: int, grid: Grid) -> float:
    """Return the number of the grid with the least output error, all other weights given."""

    def error(number: float) -> float:
        trial = line.clone()
        trial[column] = number
        return float((trial - target) @ ridge @ (trial - target))

    return min(numbers(grid), key=error)


def fitted(line: Tensor, target: Tensor, ridge: Tensor, start: int, grid: Grid) -> Grid:
    """Return the grid whose scale gives a block of a row, its codes unchanged, the least output error."""
    scale, zero = grid
    if not scale:
        return grid
    steps = torch.zeros_like(line)
    steps[start : start + BLOCK] = line[start : start + BLOCK] / scale
    if not steps.any():
        return grid
    others = line - scale * steps

    def error(candidate: float) -> float:
        difference = others + candidate * steps - target
        return float(difference @ ridge @ difference)

    least = fp16(float(steps @ ridge @ (target - others) / (steps @ ridge @ steps)))
    if least <= 0 or error(least) >= error(scale):
        return grid
    line[start : start + BLOCK] = (least * steps)[start : start + BLOCK]
    return least, zero
