"""The best approximation of every rank in a weighted norm, by numpy's SVD in float64; knows nothing of shears.

||(D - L) H^(1/2)||_F^2 over all L of rank r is least for the truncated SVD of D H^(1/2), and there the sum of the
squared singular values left out (Eckart and Young, 1936). H^(1/2) is the symmetric root.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def root(metric: Array) -> Array:
    """Return the symmetric root of a symmetric matrix without negative eigenvalues (but for rounding)."""
    values, vectors = np.linalg.eigh(metric)
    result: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return result


def least_errors(removed: Array, metric: Array) -> Array:
    """Return the least squared error of every rank from 0 to min(O, I)."""
    squares = np.linalg.svd(removed @ root(metric), compute_uv=False) ** 2
    return np.array([squares[rank:].sum() for rank in range(len(squares) + 1)])


def error(removed: Array, approximation: Array, metric: Array) -> float:
    """Return ||(removed - approximation) metric^(1/2)||_F^2."""
    return float((((removed - approximation) @ root(metric)) ** 2).sum())


def approximation(removed: Array, metric: Array, rank: int) -> Array:
    """Return the best L of this rank in terms of the metric: unique on the features that the metric sees."""
    left = np.linalg.svd(removed @ root(metric), full_matrices=False)[0][:, :rank]
    result: Array = left @ (left.T @ removed)
    return result
