"""Capture the inputs of a block's weights while the block runs, and their statistics.

Shapes: T tokens, O output features, I input features, E experts.

Multiplications are watched, not modules: a weight is recognised by the address of its first number,
whether its linear is called, its weight is used directly, or a stack of experts is sliced (decision
13). A linear whose outputs are multiplied in groups (DeepSeek V4) is not seen.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shears.errors import InputError
from shears.models.blocks import Matrix

Receive = Callable[[Matrix, Float[Tensor, "T I"]], None]
# experts implementations of transformers in which the multiplications of each expert can be watched
SEEN_EXPERTS = frozenset({"eager", "grouped_mm"})
# multiplications by name: position of the left factor; is the right one O x I (else I x O)?
PRODUCTS = {
    "linear": (0, True),
    **dict.fromkeys(("addmm", "baddbmm"), (1, False)),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), (0, False)),
    **dict.fromkeys(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"), (0, False)),
}
PANEL = 256  # columns of moments that are summed at once
# keywords for the factors (and what is added to them), in the order of their positions
FACTORS = ("input", "self", "mat1", "batch1", "mat_a", "weight", "tensor2", "other", "mat2", "batch2", "mat_b")


@contextmanager
def capturing(model: nn.Module, block: nn.Module, matrices: Sequence[Matrix], receive: Receive) -> Iterator[None]:
    """Call `receive(matrix, inputs)` for every multiplication with a matrix inside the context.

    `inputs` are T x I in their own dtype and must not be changed; consecutive calls with one tensor
    (q, k and v) get one object. `receive` runs without gradients and autocast, and not for a matrix
    without tokens, such as an unused expert. The parameters must not be on the meta device, and
    must not move. InputError if a weight is multiplied along its outputs.
    """
    views = [(matrix, matrix.view(model)) for matrix in matrices]
    by_address = {view.data_ptr(): (matrix, view) for matrix, view in views}
    stacks = {matrix.parameter for matrix in matrices if matrix.index is not None}
    starts = frozenset(model.get_parameter(name).data_ptr() for name in stacks)
    modules = [module for module in block.modules() if hasattr(module, "is_transposed") and hasattr(module, "config")]
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    both = [(config, config._experts_implementation) for config in configs.values()]
    unseen = [(config, chosen) for config, chosen in both if chosen not in SEEN_EXPERTS]
    try:
        for config, _ in unseen:
            config._experts_implementation = "eager"
        with _Watch(by_address, starts, receive):
            yield
    finally:
        for config, chosen in unseen:
            config._experts_implementation = chosen


class _Watch(TorchFunctionMode):
    """A mode that inspects every call of torch, except those inside of `receive`."""

    def __init__(self, views: dict[int, tuple[Matrix, Tensor]], stacks: Collection[int], receive: Receive) -> None:
        super().__init__()
        self._views = views
        self._stacks = stacks
        self._receive = receive
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        product = PRODUCTS.get(getattr(func, "__name__", ""))
        if product is not None:
            with torch.no_grad():
                self._inspect(product, args, keywords)
        return func(*args, **keywords)

    def _inspect(self, product: tuple[int, bool], args: Sequence[Any], keywords: dict[str, Any]) -> None:
        at, outputs_first = product
        given = (*args, *(keywords[name] for name in FACTORS if name in keywords))
        left, right = given[at : at + 2] if len(given) >= at + 2 else (None, None)
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            return
        address = right.data_ptr()
        if (right.ndim == 2 and address in self._views) or address in self._stacks:
            for weight, inputs in _pairs(left, right.mT if outputs_first else right, keywords.get("offs")):
                self._pass_on(weight, inputs)
        elif left.data_ptr() in self._views and left.ndim == 2 and right.ndim > 1:
            self._pass_on(left.mT, right.mT)  # weight times inputs, as in Mamba's time step

    def _pass_on(self, weight: Float[Tensor, "I O"], inputs: Tensor) -> None:
        matrix, view = self._views.get(weight.data_ptr(), (None, None))
        if matrix is None or view is None or not inputs.numel():
            return
        if weight.shape[0] != matrix.shape[1] or (min(matrix.shape) > 1 and weight.stride(0) != view.stride(1)):
            raise InputError(
                f"{matrix.name} is multiplied along its outputs, so it cannot be pruned; leave it out with skip"
            )
        with torch.autocast(inputs.device.type, enabled=False):
            self._receive(matrix, self._tokens(inputs))

    def _tokens(self, inputs: Tensor) -> Float[Tensor, "T I"]:
        if self._last is not None and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        tokens = inputs.detach().reshape(-1, inputs.shape[-1])
        self._last = (inputs, inputs._version, tokens)
        return tokens


def _pairs(inputs: Tensor, weight: Tensor, offsets: Any) -> Iterator[tuple[Float[Tensor, "I O"], Tensor]]:
    """Yield each I x O weight of a product, batched or grouped too, with its inputs.

    Grouped inputs are sorted by expert, and `offsets` (E) has the end of each expert's rows. A
    batched product gives every expert a row for every token; rows of zeros (Llama 4) are no tokens
    of it.
    """
    if weight.ndim == 2:
        yield weight, inputs
    elif weight.ndim == 3 and inputs.ndim == 2 and isinstance(offsets, Tensor):
        start = 0
        for index, end in enumerate(offsets.tolist()):
            yield weight[index], inputs[start:end]
            start = end
    elif weight.ndim == 3 and inputs.ndim == 3 and len(inputs) == len(weight):
        for index in range(len(weight)):
            yield weight[index], inputs[index][inputs[index].any(-1)]


class InputNorms:
    """L2 norms of input features, summed in float32 within a call and in float64 across calls."""

    def __init__(self) -> None:
        self._totals: dict[Matrix, Float[Tensor, " _"]] = {}
        self._last: tuple[Tensor, Float[Tensor, " I"]] | None = None

    def receive(self, matrix: Matrix, inputs: Float[Tensor, "T I"]) -> None:
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, inputs.float().square().sum(0).cpu().double())
        squares = self._last[1]
        self._totals[matrix] = self._totals[matrix] + squares if matrix in self._totals else squares

    def of(self, matrix: Matrix) -> Float[Tensor, " I"] | None:
        """Return ||X_i||_2 in float64 on the CPU; None for a weight without tokens."""
        total = self._totals.get(matrix)
        return None if total is None else total.sqrt()


class InputMoments:
    """Second moments X^T X (I x I, float32, on the inputs' device).

    Weights that are always multiplied with the same tensors (q, k and v) share one matrix. Only its
    upper half is summed, in panels of columns; `of` mirrors it.
    """

    def __init__(self) -> None:
        self._moments: dict[Matrix, Float[Tensor, "I I"]] = {}
        self._owner: dict[Matrix, Matrix] = {}
        self._last: tuple[Tensor, Matrix] | None = None

    def receive(self, matrix: Matrix, inputs: Float[Tensor, "T I"]) -> None:
        if self._last is not None and self._last[0] is inputs:
            self._owner.setdefault(matrix, self._last[1])
            return
        owner = self._owner.setdefault(matrix, matrix)
        self._last = (inputs, owner)
        tokens = inputs.float()
        if owner not in self._moments:
            self._moments[owner] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
        for start, end in _panels(tokens.shape[1]):
            self._moments[owner][:end, start:end].addmm_(tokens[:, :end].T, tokens[:, start:end])

    def of(self, matrix: Matrix) -> Float[Tensor, "I I"] | None:
        """Return X^T X; None for a weight without tokens."""
        owner = self._owner.get(matrix)
        if owner is None:
            return None
        moments = self._moments[owner]
        for start, end in _panels(len(moments)):
            moments[start:end, :start] = moments[:start, start:end].T
        return moments


def _panels(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PANEL, size)) for start in range(0, size, PANEL))
