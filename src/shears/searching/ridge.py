"""Weighted ridge regression behind controls for the step and the example. Pure numerics.

The controls come off first: targets and features lose what the controls explain. What is left gives exactly the ridge
regression with the controls in it, free of any penalty (Frisch, Waugh and Lovell).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Integer

NEIGHBOURS = 8  # steps on either side whose mean is the trend where a step has one pair
ROUNDS, CLOSE = 1000, 1e-12  # of conjugate gradients; the residual at their end, relative to the values
ABSORBED = 1e-6  # share of a column that is left where the (other) controls explain all of it but rounding
STRENGTHS = np.logspace(-4, 4, 49)  # tried, relative to the features' mean square


@dataclass(frozen=True)
class Ridge:
    """Coefficients of C features, the strength of the penalty, and the share of variance explained out of sample.

    The share is 1 - GCV(strength) / GCV(no feature at all), at least 0: an estimate, slightly flattering because the
    strength is the best of many.
    """

    coefficients: Float64[np.ndarray, " C"]
    strength: float
    explained: float


class Controls:
    """Takes the step and the example out of values (N rows): dummies of both, or a trend in place of the steps.

    Steps with several rows lose their mean, and so does an example seen at least twice; its label is not negative.
    Where no step has two rows, a step's mean would be all there is: each row loses the mean of its neighbours instead.
    """

    def __init__(
        self,
        steps: Integer[np.ndarray, " N"],
        examples: Integer[np.ndarray, " N"],
        weights: Float64[np.ndarray, " N"],
    ) -> None:
        self._weights = weights
        self._steps = _Labels(steps, weights, least=1)
        self._examples = _Labels(examples, weights, least=2)
        self._order = np.argsort(steps, kind="stable")
        self.is_trend = self._steps.num == len(steps)
        # one too many where the log hangs together: then the dummies of steps and examples have one sum
        self.num = float((self._trend_taken() if self.is_trend else self._steps.num) + self._examples.num)

    def remove(self, values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
        """Return what weighted least squares on the controls leave, to about 1e-9 of the values."""
        if self.is_trend:
            return self._examples.within(self._without_trend(values))
        left = self._steps.within(values)
        return left - self._between(left) if self._examples.num else left

    def _between(self, left: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
        """Return what examples explain of values that steps explain nothing of.

        Demeaning by step and by example in turn converges to it, slowly where few examples link the steps; conjugate
        gradients on the same two operations need the root of as many rounds.
        """
        found, residual = np.zeros_like(left), self._linked(left)
        direction, norm, enough = residual, self._dot(residual, residual), CLOSE**2 * self._dot(left, left)
        for _ in range(ROUNDS):
            if (norm <= enough).all():
                break
            image = self._linked(direction)
            size = _ratio(norm, self._dot(direction, image))
            found, residual = found + size * direction, residual - size * image
            before, norm = norm, self._dot(residual, residual)
            direction = residual + _ratio(norm, before) * direction
        return found

    def _linked(self, values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
        return self._steps.within(values - self._examples.within(values))

    def _dot(self, a: Float64[np.ndarray, "N C"], b: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, " C"]:
        return np.asarray((self._weights[:, None] * a * b).sum(axis=0))

    def _without_trend(self, values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
        """Subtract the running mean."""
        weights, left = self._weights[self._order][:, None], np.empty_like(values)
        means = _neighbours_sum(weights * values[self._order]) / _neighbours_sum(weights)
        left[self._order] = values[self._order] - means
        return left

    def _trend_taken(self) -> float:
        """Return the degrees of freedom of the running mean, its trace: rows at the ends have few neighbours."""
        weights = self._weights[self._order][:, None]
        return float((weights / _neighbours_sum(weights)).sum())


def _neighbours_sum(values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
    """Return the sum over each row and its neighbours: symmetric at both ends, so that a linear trend goes entirely."""
    size, place = len(values), np.arange(len(values))
    reach = np.minimum(np.minimum(place, size - 1 - place), NEIGHBOURS)
    sums = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    return np.asarray(sums[place + reach + 1] - sums[place - reach])


def _ratio(a: Float64[np.ndarray, " C"], b: Float64[np.ndarray, " C"]) -> Float64[np.ndarray, " C"]:
    """Return a / b, 0 where b is not positive: nothing is left to do there."""
    return np.asarray(np.divide(a, b, out=np.zeros_like(a), where=b > 0))


class _Labels:
    """Rows by label: those with a label that is not negative and that at least `least` rows have."""

    def __init__(self, labels: Integer[np.ndarray, " N"], weights: Float64[np.ndarray, " N"], least: int) -> None:
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(index, kind="stable")
        self._rows = order[(counts[index[order]] >= least) & (labels[order] >= 0)]
        _, self._starts, self._sizes = np.unique(index[self._rows], return_index=True, return_counts=True)
        self._weights = weights[self._rows][:, None]
        self.num = len(self._starts)

    def within(self, values: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
        """Return the values less their label's weighted mean; other rows as they are."""
        if not self.num:
            return values
        part, left = values[self._rows], values.copy()
        sums = np.add.reduceat(self._weights * part, self._starts, axis=0)
        means = sums / np.add.reduceat(self._weights, self._starts, axis=0)
        left[self._rows] = part - np.repeat(means, self._sizes, axis=0)
        return left


def regress(
    targets: Float64[np.ndarray, " N"],
    features: Float64[np.ndarray, "N C"],
    covariates: Float64[np.ndarray, "N D"],
    weights: Float64[np.ndarray, " N"],
    controls: Controls,
    strength: float | None = None,
) -> Ridge:
    """Return the b that minimises sum w (y - X b - controls)^2 + strength * |b|^2 over b and the controls.

    The covariates (D of them, 0 will do) are controls beside steps and examples. A feature of which the controls leave
    only rounding gets 0. Without a strength, generalised cross-validation chooses it.
    """
    together = controls.remove(np.column_stack([targets, features, covariates]))
    free = 1 + features.shape[1]
    roots = np.sqrt(weights)[:, None]
    beside = _not_absorbed(together[:, free:], covariates)
    left = _project_out(roots * together[:, :free], roots * beside)
    absorbed = np.linalg.norm(left[:, 1:], axis=0) <= ABSORBED * np.linalg.norm(roots * features, axis=0)
    rows = max(len(targets) - controls.num - beside.shape[1], 0.0)
    return _solve(left[:, 0], np.where(absorbed, 0.0, left[:, 1:]), rows, strength)


def _not_absorbed(
    left: Float64[np.ndarray, "N D"], covariates: Float64[np.ndarray, "N D"]
) -> Float64[np.ndarray, "N _"]:
    """Return the covariates of which the other controls left more than rounding."""
    return left[:, np.linalg.norm(left, axis=0) > ABSORBED * np.linalg.norm(covariates, axis=0)]


def _project_out(values: Float64[np.ndarray, "N C"], others: Float64[np.ndarray, "N _"]) -> Float64[np.ndarray, "N C"]:
    if not others.shape[1]:
        return values
    basis, scale, _ = np.linalg.svd(others / np.linalg.norm(others, axis=0), full_matrices=False)
    basis = basis[:, scale > ABSORBED]
    return np.asarray(values - basis @ (basis.T @ values))


def _solve(
    targets: Float64[np.ndarray, " N"], features: Float64[np.ndarray, "N C"], rows: float, strength: float | None
) -> Ridge:
    """Solve by the eigenvectors of the features' moments; `rows` is what the controls left of N."""
    squares, vectors = np.linalg.eigh(features.T @ features)
    squares = np.maximum(squares, 0.0)
    products = vectors.T @ (features.T @ targets)
    total, scale = float(targets @ targets), float(squares.mean()) or 1.0
    tried = scale * STRENGTHS if strength is None else np.array([strength])
    scores = [_gcv(squares, products, total, rows, float(each)) for each in tried]
    best = int(np.argmin(scores[::-1]))  # of equal ones, the strongest
    chosen, nothing = float(tried[::-1][best]), total / rows**2 if rows else 0.0
    explained = max(1.0 - scores[::-1][best] / nothing, 0.0) if nothing else 0.0
    return Ridge(vectors @ (products / (squares + chosen)), chosen, explained)


def _gcv(
    squares: Float64[np.ndarray, " C"], products: Float64[np.ndarray, " C"], total: float, rows: float, strength: float
) -> float:
    """Return the residuals' squares over the squared degrees of freedom; infinity where none is left."""
    shrunk = squares + strength
    freedom = rows - float((squares / shrunk).sum())
    if freedom < 1:
        return np.inf
    return (total - float((products**2 * (squares + 2 * strength) / shrunk**2).sum())) / freedom**2
