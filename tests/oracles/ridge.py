"""Ridge regression with dummy variables, restated literally and densely in float64; knows nothing of shears.

One column a step, one column an example seen at least twice, the covariates and a constant, all free of penalty; the
features, with one. Normal equations of all of them together, solved as they stand. Spearman's correlation by counting.
"""

import numpy as np


def dummies(labels: list[int], least: int) -> np.ndarray:
    """Return a column of zeros and ones for every label that is not negative and comes at least so often."""
    chosen = [label for label in sorted(set(labels)) if label >= 0 and labels.count(label) >= least]
    return np.array([[float(label == each) for each in chosen] for label in labels]).reshape(len(labels), len(chosen))


def columns(steps: list[int], examples: list[int], covariates: np.ndarray) -> np.ndarray:
    """Return all controls side by side (N x anything)."""
    return np.hstack([np.ones((len(steps), 1)), dummies(steps, 1), dummies(examples, 2), covariates])


def fit(
    targets: np.ndarray, features: np.ndarray, weights: np.ndarray, controls: np.ndarray, strength: float
) -> np.ndarray:
    """Return the features' coefficients; the controls may be collinear."""
    everything = np.hstack([features, controls])
    penalty = np.diag([strength] * features.shape[1] + [0.0] * controls.shape[1])
    moments = everything.T @ np.diag(weights) @ everything + penalty
    solution = np.linalg.pinv(moments, rcond=1e-12, hermitian=True) @ (everything.T @ (weights * targets))
    return np.asarray(solution[: features.shape[1]])


def gcv(targets: np.ndarray, features: np.ndarray, weights: np.ndarray, controls: np.ndarray, strength: float) -> float:
    """Return sum of squares / (N - trace of the hat matrix)^2, the hat matrix formed in full."""
    everything = np.hstack([features, controls])
    penalty = np.diag([strength] * features.shape[1] + [0.0] * controls.shape[1])
    roots = np.diag(np.sqrt(weights))
    scaled = roots @ everything
    hat = scaled @ np.linalg.pinv(scaled.T @ scaled + penalty, rcond=1e-12, hermitian=True) @ scaled.T
    left = roots @ targets - hat @ roots @ targets
    return float(left @ left) / float(len(targets) - np.trace(hat)) ** 2


def mean_rank(value: float, values: list[float]) -> float:
    """Return the number of smaller values and half the number of equal ones, itself included, and a half."""
    return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2


def spearman(a: list[float], b: list[float]) -> float:
    """Return Pearson's correlation of the mean ranks."""
    first, second = ([mean_rank(value, values) for value in values] for values in (a, b))
    middle = (len(a) + 1) / 2
    shared = sum((x - middle) * (y - middle) for x, y in zip(first, second, strict=True))
    squares = [sum((x - middle) ** 2 for x in side) for side in (first, second)]
    return float(shared / (squares[0] * squares[1]) ** 0.5)
