"""PoLAR and LoKr literally: products of reflections, Kronecker products, in float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def directions(original: Matrix) -> Matrix:
    """The first columns of H_1 ... H_k D: H_i = 1 - 2 v v^T / v^T v, v the ith column below its 1, D the signs."""
    size, count = original.shape
    product = np.eye(size)
    for index in range(count):
        v = np.zeros(size)
        v[index] = 1.0
        v[index + 1 :] = original[index + 1 :, index]
        product = product @ (np.eye(size) - 2 * np.outer(v, v) / (v @ v))
    return product[:, :count] * np.sign(np.diag(original))


def polar_update(x: Matrix, core: Matrix, y: Matrix, rank: int, scaling: float) -> Matrix:
    """The sum of the first `rank` components: the ith is X times the ith column of the core, times the ith of Y."""
    return scaling * sum((np.outer(x @ core[:, i], y[:, i]) for i in range(rank)), np.zeros((len(x), len(y))))


def lokr_update(w1: Matrix, w2_a: Matrix, w2_b: Matrix, weights: Sequence[float], scaling: float) -> Matrix:
    """Block (l, m) of the update is w1[l, m] times w2, whose components have weights."""
    w2 = sum((weights[i] * np.outer(w2_a[:, i], w2_b[i]) for i in range(len(weights))), 0 * (w2_a @ w2_b))
    return scaling * np.block([[entry * w2 for entry in row] for row in w1])
