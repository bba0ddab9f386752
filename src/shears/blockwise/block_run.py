"""One decoder block, the calls recorded of it, and the calibration tokens on their way through it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.blockwise.activations import Activations
from shears.blockwise.capture import Captured, Receive
from shears.blockwise.matrices import Matrix

HIDDEN = "hidden_states"
Context = Callable[[], AbstractContextManager[Any]]


class Stop(Exception):  # noqa: N818  # no error: ends a forward that has done its work
    """Raised inside a forward."""


@dataclass
class Calls:
    """What one block was called with: per batch the arguments beside the hidden states."""

    args: list[tuple[Any, ...]] = field(default_factory=list)
    kwargs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Record a call; return its hidden states."""
        rest = dict(kwargs)
        hidden: Tensor = args[0] if args else rest.pop(HIDDEN)
        if self.kwargs:  # masks and positions of equal batches are kept once
            rest = {key: _shared(value, self.kwargs[-1].get(key)) for key, value in rest.items()}
        self.args.append(tuple(args[1:]))
        self.kwargs.append(rest)
        return hidden

    def replay(self, block: nn.Module, batch: int, hidden: Tensor) -> Tensor:
        """Call the block as it was called, with other hidden states."""
        output = block(hidden, *self.args[batch], **self.kwargs[batch])
        return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


def _shared(value: Any, earlier: Any) -> Any:
    """Return `earlier` where it is a tensor, or a tuple of tensors, equal to `value`; else `value`."""
    if isinstance(value, Tensor) and isinstance(earlier, Tensor):
        alike = value.shape == earlier.shape and value.dtype == earlier.dtype and value.device == earlier.device
        return earlier if alike and torch.equal(value, earlier) else value
    if isinstance(value, tuple) and isinstance(earlier, tuple) and len(value) == len(earlier):
        return tuple(map(_shared, value, earlier))
    return value


@dataclass(frozen=True)
class BlockRun:
    """A decoder block in memory, and the calibration tokens on their way through it.

    `name` is the block's name in `model`, `hidden` what goes into it, a tensor per batch.
    """

    name: str
    model: PreTrainedModel
    block: nn.Module
    hidden: Activations
    calls: Calls
    context: Context

    def forward(self, batch: int, states: Tensor | None = None) -> Tensor:
        """Return the block's output of a batch; `states` take the place of what went into it."""
        with self.context():
            return self.calls.replay(self.block, batch, self.hidden[batch] if states is None else states)

    def outputs(self) -> Iterator[Tensor]:
        """Yield the output of every batch."""
        for batch in range(len(self.hidden)):
            yield self.forward(batch)

    def measure(self, matrices: Sequence[Matrix], receive: Receive) -> None:
        """Let `receive(matrix, inputs)` see what the matrices are multiplied with, over all batches.

        Where the first batch meets every matrix exactly once, the forwards after it end at the last one.
        """
        met: list[Matrix] = []

        def first(matrix: Matrix, inputs: Tensor) -> None:
            met.append(matrix)
            receive(matrix, inputs)

        self._measure_batch(0, matrices, first)
        whole = len(met) == len(set(met)) == len(matrices)

        def until_last(matrix: Matrix, inputs: Tensor) -> None:
            receive(matrix, inputs)
            if matrix == met[-1]:
                raise Stop

        for batch in range(1, len(self.hidden)):
            with suppress(Stop):
                self._measure_batch(batch, matrices, until_last if whole else receive)

    def groups(self, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
        """Return the matrices in the order in which a token meets them; those that get one tensor lie together.

        So do all slices of a stack of experts. Matrices that the first batch does not meet come at the end.
        """
        order: dict[object, list[Matrix]] = {}
        seen: set[Matrix] = set()
        last: list[Any] = [None, 0]  # the tensor that came last, and a number for the calls in a row with it

        def receive(matrix: Matrix, inputs: Tensor) -> None:
            if inputs is not last[0]:
                last[:] = [inputs, last[1] + 1]
            if matrix not in seen:
                key = last[1] if matrix.index is None else matrix.parameter
                order.setdefault(key, []).append(matrix)
                seen.add(matrix)

        self._measure_batch(0, matrices, receive)
        for matrix in matrices:
            if matrix not in seen:
                key = matrix.name if matrix.index is None else matrix.parameter
                order.setdefault(key, []).append(matrix)
        return list(order.values())

    def _measure_batch(self, batch: int, matrices: Sequence[Matrix], receive: Receive) -> None:
        with Captured(self.model, self.block, matrices, receive):
            self.forward(batch)
