"""What a block's weights are multiplied with while the block runs.

Shapes: T tokens, O output features, I input features, E experts, F either of an expert's I and O.

Not modules are watched but multiplications: a weight is recognised by the place of its first number in memory, so that
it does not matter whether a linear is called or its weight used on its own, or how a stack of experts is sliced.
A linear whose outputs are multiplied in groups, each with inputs of its own (DeepSeek V4), is not seen.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shears.blockwise.matrices import Matrix
from shears.errors import InputError

Receive = Callable[[Matrix, Float[Tensor, "T I"]], None]
# the experts implementations of transformers whose multiplications are seen expert by expert
SEEN_EXPERTS = frozenset({"eager", "grouped_mm"})
# multiplications by name: where the left factor stands, and whether the right one comes as O I (else as I O)
PRODUCTS = {
    "linear": (0, True),
    "matmul": (0, False),
    "__matmul__": (0, False),
    "mm": (0, False),
    "bmm": (0, False),
    "addmm": (1, False),
    "baddbmm": (1, False),
    "grouped_mm": (0, False),
    "_grouped_mm": (0, False),
    "grouped_mm_fallback": (0, False),
}
# keywords for the factors (and what is added to them), in the order of their positions
FACTORS = ("input", "self", "mat1", "batch1", "mat_a", "weight", "tensor2", "other", "mat2", "batch2", "mat_b")


class Captured:
    """While the `with` lasts, `receive(matrix, inputs)` is called for every multiplication with one of the matrices.

    `inputs` are T x I in the dtype they come in; they must not be changed. Calls in a row with the same tensor (q, k
    and v) get the same object. `receive` runs without gradients and without autocast. A matrix that meets no token, as
    an expert may, is not received. The parameters must be real (not meta) on entry and stay where they are.
    InputError where a weight is multiplied along the side taken for its outputs.
    """

    def __init__(self, model: nn.Module, block: nn.Module, matrices: Sequence[Matrix], receive: Receive) -> None:
        self._model = model
        self._block = block
        self._matrices = matrices
        self._receive = receive
        self._open = ExitStack()

    def __enter__(self) -> "Captured":
        views = [(matrix, matrix.view(self._model)) for matrix in self._matrices]
        places = {view.data_ptr(): (matrix, view) for matrix, view in views}
        assert 0 not in places, "matrices must not be on the meta device"
        assert len(places) == len(views), "every matrix must have memory of its own"
        self._open.enter_context(seen_experts(self._block))
        stacks = {matrix.parameter for matrix in self._matrices if matrix.index is not None}
        starts = frozenset(self._model.get_parameter(name).data_ptr() for name in stacks)
        self._open.enter_context(_Watch(places, starts, self._receive))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


@contextmanager
def seen_experts(block: nn.Module) -> Iterator[None]:
    """Let experts below a module run by an implementation that can be watched: for a while by `eager`, if need be."""
    modules = [module for module in block.modules() if hasattr(module, "is_transposed")]
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    unseen = [(config, config._experts_implementation) for config in configs.values()]
    unseen = [(config, implementation) for config, implementation in unseen if implementation not in SEEN_EXPERTS]
    try:
        for config, _ in unseen:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, implementation in unseen:
            config._experts_implementation = implementation


class _Watch(TorchFunctionMode):
    """Looks at every call of torch; torch leaves the mode off while this looks, so `receive` is not watched.

    `stacks` are the places of whole stacks, of which not every matrix need be among `places`.
    """

    def __init__(self, places: dict[int, tuple[Matrix, Tensor]], stacks: Collection[int], receive: Receive) -> None:
        super().__init__()
        self._places, self._stacks = places, stacks
        self._receive = receive
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._last = None  # holds a tensor of activations
        super().__exit__(kind, error, at)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        product = PRODUCTS.get(getattr(func, "__name__", ""))
        if product is not None:
            with torch.no_grad():
                self._look(product, args, keywords)
        return func(*args, **keywords)

    def _look(self, product: tuple[int, bool], args: Sequence[Any], keywords: dict[str, Any]) -> None:
        at, outputs_first = product
        left, right = _factors(args, keywords, at)
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            return
        place = right.data_ptr()
        if (right.ndim == 2 and place in self._places) or place in self._stacks:
            for weight, inputs in _pairs(left, right.mT if outputs_first else right, keywords.get("offs")):
                self._found(weight, inputs)
        elif left.data_ptr() in self._places and left.ndim == 2 and right.ndim > 1:
            self._found(left.mT, right.mT)  # weight times inputs, as Mamba's time step

    def _found(self, weight: Float[Tensor, "I O"], inputs: Tensor) -> None:
        matrix, view = self._places.get(weight.data_ptr(), (None, None))
        if matrix is None or view is None or not inputs.numel():
            return
        _check_side(matrix, view, weight)
        with torch.autocast(inputs.device.type, enabled=False):
            self._receive(matrix, self._tokens(inputs))

    def _tokens(self, inputs: Tensor) -> Float[Tensor, "T I"]:
        """Return the inputs as T x I; the same object for calls in a row with a tensor that has not changed."""
        if self._last is not None and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        tokens = inputs.detach().reshape(-1, inputs.shape[-1])
        self._last = (inputs, inputs._version, tokens)
        return tokens


def _factors(args: Sequence[Any], keywords: dict[str, Any], at: int) -> tuple[Any, Any]:
    """Return the two factors of a multiplication, by position or else by the names torch's signatures give them."""
    given = (*args, *(keywords[name] for name in FACTORS if name in keywords))
    return given[at : at + 2] if len(given) >= at + 2 else (None, None)


def _pairs(inputs: Tensor, weight: Tensor, offsets: Any) -> Iterator[tuple[Float[Tensor, "I O"], Tensor]]:
    """Yield each I x O weight with its inputs: itself, or the members of a batched or grouped multiplication.

    Grouped inputs are sorted by expert, `offsets` (E) tells where each expert's end. In a batched multiplication every
    expert gets a row for every token; rows of zeros, as routing leaves them (Llama 4), are no tokens of the expert.
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


def _check_side(matrix: Matrix, view: Float[Tensor, "O I"], weight: Float[Tensor, "_ _"]) -> None:
    """Check that the side multiplied along (the first of `weight`) is the matrix's inputs."""
    if weight.shape[0] != matrix.shape[1] or (min(matrix.shape) > 1 and weight.stride(0) != view.stride(1)):
        raise InputError(
            f"{matrix.name} must be multiplied along its {matrix.shape[1]} inputs, this architecture multiplies along "
            "what was taken for its outputs; it cannot be pruned, leave it out of the targets"
        )
