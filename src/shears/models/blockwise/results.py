"""Results of a block's products that repeated forwards read in place of computing them again.

A block is pruned group by group, each measured behind the groups before it. So every forward begins
as the one before it, and goes on with weights that have changed since.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEPT = frozenset({"linear", "addmm", "scaled_dot_product_attention"})


@dataclass(frozen=True)
class _Result:
    """A tensor, and its version when it was computed: a later one was changed in place."""

    tensor: Tensor
    version: int


class Results:
    """The results of a block's first products, by batch; at most `room` bytes (None: no limit).

    `refresh` must be called before a series of forwards.
    """

    def __init__(self, block: nn.Module, room: int | None = None) -> None:
        self._block = block
        self._room = room
        self._kept: dict[int, list[_Result | None]] = {}
        self._needed: dict[str, tuple[int, int]] = {}  # parameters that the results may depend on, as they were

    def refresh(self) -> None:
        """Forget all results if a parameter that they may depend on has changed."""
        if self._needed.items() - self._states().items():
            self._kept.clear()
            self._needed.clear()

    def depend_on(self, unused: Collection[str]) -> None:
        """Note that the results depend on the parameters as they are, except `unused` ones."""
        self._needed = {name: state for name, state in self._states().items() if name not in unused}

    @contextmanager
    def reading(self, batch: int) -> Iterator[None]:
        """Read a batch's known results inside the context, and keep those behind them.

        An exception must end the forward before it uses what will change: results of a whole
        forward are forgotten.
        """
        with _Reading(self._kept.setdefault(batch, []), self._fits):
            yield
        del self._kept[batch]

    @contextmanager
    def spending(self, batch: int) -> Iterator[None]:
        """Read a batch's known results inside the context, for the last time."""
        with _Reading(self._kept.pop(batch, []), lambda _: False):
            yield

    def _states(self) -> dict[str, tuple[int, int]]:
        """Return every parameter's address and version, which each change in place raises."""
        return {name: (each.data_ptr(), each._version) for name, each in self._block.named_parameters()}

    def _fits(self, tensor: Tensor) -> bool:
        kept = [result.tensor for results in self._kept.values() for result in results if result is not None]
        return self._room is None or sum(other.nbytes for other in (*kept, tensor)) <= self._room


class _Reading(TorchFunctionMode):
    """A mode that counts the products of one forward and reads the known ones."""

    def __init__(self, results: list[_Result | None], fits: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._results = results
        self._fits = fits
        self._place = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in KEPT:
            return func(*args, **(kwargs or {}))
        known = self._results[self._place] if self._place < len(self._results) else None
        self._place += 1
        if known is not None and known.tensor._version == known.version:
            return known.tensor
        result = func(*args, **(kwargs or {}))
        if self._place > len(self._results):
            self._results.append(_Result(result, result._version) if self._fits(result) else None)
        return result
