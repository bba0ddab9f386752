"""Who makes a scorer's forwards: so that one who knows more can leave a part of them out."""

from collections.abc import Callable

from torch import Tensor

Run = Callable[[Callable[[], Tensor]], Tensor]
"""Calls a function that makes one forward of the model, and returns what it returns."""


def plainly(forward: Callable[[], Tensor]) -> Tensor:
    """Make a forward, whole."""
    return forward()
