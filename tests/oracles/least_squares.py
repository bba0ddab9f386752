"""Least squares of kept weights, restated literally and slowly in float64; knows nothing of shears.

For one row w of a linear, inputs X (tokens x features), kept features K: the v that is zero outside of K and minimises
|X v - X w|^2 + ridge * |v - w|^2. The second term is a row more per feature: sqrt(ridge) * v = sqrt(ridge) * w.
"""

import torch
from torch import Tensor


def ridge(inputs: Tensor, damping: float) -> float:
    """Return damping times the mean over the features of their squared norms."""
    return damping * float(inputs.double().square().sum(0).mean())


def system(inputs: Tensor, damping: float) -> Tensor:
    """Return the inputs with the rows of the ridge below them."""
    below = ridge(inputs, damping) ** 0.5 * torch.eye(inputs.shape[1], dtype=torch.float64)
    return torch.cat([inputs.double(), below])


def fit(weight: Tensor, kept: Tensor, inputs: Tensor, damping: float) -> Tensor:
    """Return the optimum, row by row with a solver of overdetermined systems; no second moments are formed."""
    rows, found = system(inputs, damping), torch.zeros_like(weight, dtype=torch.float64)
    for index, row in enumerate(weight.double()):
        if kept[index].any():
            wanted = (rows @ row)[:, None]
            found[index, kept[index]] = torch.linalg.lstsq(rows[:, kept[index]], wanted, driver="gelsd").solution[:, 0]
    return found


def errors(weight: Tensor, changed: Tensor, inputs: Tensor, damping: float) -> Tensor:
    """Return per row what `fit` minimises."""
    rows = system(inputs, damping)
    difference = changed.double() - weight.double()
    return torch.stack([(rows @ row).square().sum() for row in difference])


def descend(weight: Tensor, start: Tensor, kept: Tensor, hessian: Tensor, damping: float, steps: int) -> Tensor:
    """Return what so many steps of conjugate gradients reach, row by row over the kept weights alone.

    The textbook's algorithm for A v = b with the diagonal of A as preconditioner, A the damped second moments among the
    kept features and b = those of the kept with all features times w.
    """
    hessian = hessian.double()
    damped = hessian + damping * hessian.diag().mean() * torch.eye(len(hessian), dtype=torch.float64)
    found = torch.zeros_like(weight, dtype=torch.float64)
    for index, row in enumerate(weight.double()):
        keep = kept[index]
        matrix, wanted, value = damped[keep][:, keep], damped[keep] @ row, start[index].double()[keep]
        residual = wanted - matrix @ value
        scaled = residual / matrix.diag()
        direction = scaled
        for _ in range(steps):
            if residual.norm() <= 1e-14 * (wanted.norm() + 1):
                break
            length = (residual @ scaled) / (direction @ matrix @ direction)
            value = value + length * direction
            before, residual = residual @ scaled, residual - length * (matrix @ direction)
            scaled = residual / matrix.diag()
            direction = scaled + (residual @ scaled) / before * direction
        found[index, keep] = value
    return found
