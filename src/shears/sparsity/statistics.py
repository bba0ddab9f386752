"""What a linear's inputs look like over all calibration tokens.

Shapes: I input features of a linear.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InputNorms:
    """L2 norms of every input feature of the given linears, over the forwards run inside the `with`.

    Squares are summed in float32 within a forward and in float64 across forwards, whatever the autocast around it.
    Linears called one after the other with the very same tensor (q, k and v) share the computation.
    """

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self._linears = linears
        self._totals: dict[str, Float[Tensor, " _"]] = {}
        self._last: tuple[Tensor, int, Float[Tensor, " I"]] | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> "InputNorms":
        for name, linear in self._linears.items():
            handle = linear.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: self._add(name, args[0] if args else kwargs["input"]),
                with_kwargs=True,
            )
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.close()
        self._last = None

    def norms(self) -> dict[str, Float[Tensor, " _"]]:
        """Return ||X_i||_2 in float64 on the CPU by name; a linear that no token reached is left out."""
        return {name: total.sqrt() for name, total in self._totals.items()}

    def _add(self, name: str, inputs: Any) -> None:
        if inputs.numel():  # an expert that the router sends nothing to is called with no tokens
            squares = self._squares(inputs)
            self._totals[name] = self._totals[name] + squares if name in self._totals else squares

    def _squares(self, inputs: Tensor) -> Float[Tensor, " I"]:
        """Return the sum of squares of a call's tokens, computed once for calls in a row with the same tensor."""
        if self._last is not None and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            tokens = inputs.detach().flatten(0, -2).float()
            squares = tokens.square().sum(0).cpu().double()
        self._last = (inputs, inputs._version, squares)
        return squares
