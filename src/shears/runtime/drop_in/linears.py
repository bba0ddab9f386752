"""Linears that the C++ kernels multiply by, in the place of nn.Linear, Conv1D or PEFT's LoRA layer of any model.

y = W x + scaling B (A x) + bias. With the kernels, x of any number of tokens is multiplied by the packed weight.
Without them, with gradients, and for dtypes or devices they do not have, torch multiplies by the dense weight:
unpacked once where there are no kernels (memory as before packing), at every call otherwise.

Shapes: O outputs, I inputs, R ranks, * any leading dimensions.
"""

import itertools
import logging
import weakref
from abc import abstractmethod
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed.layout import PackedMatrix, dense
from shears.runtime.native import kernels_available

logger = logging.getLogger(__name__)
KERNEL_DTYPES = (torch.float32, torch.bfloat16)


class LowRank(NamedTuple):
    """An adapter of one linear: scaling * B A is what it adds to the weight."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scaling: float


class Kernel(NamedTuple):
    """What the C++ kernels multiply by: their matrix and update, and the threads that do it."""

    matrix: Any  # shears.runtime.native.kernels.KernelMatrix
    update: Any  # shears.runtime.native.kernels.Update, or None
    pool: Any  # shears.runtime.native.kernels.Pool


class KernelLinear(nn.Module):
    """A linear with a kernel, perhaps; `original` is the module it stands for."""

    bias: Tensor | None

    def __init__(self, shape: tuple[int, int], original: nn.Module, bias: Tensor | None, kernel: Kernel | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.kernel = kernel
        self.original = (original,)  # in a tuple: none of this module's own submodules
        self.bias = bias
        self.handle = next(_handles)
        _alive[self.handle] = self

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the outputs in the dtype of x, or of autocast where it is on."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if not self._has_kernel(x):
            return self._by_torch(x)
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.shears.multiply(x, self.handle, self.out_features)
        else:
            y = self.multiply(x)
        return y if self.bias is None else y.add_(self.bias)

    def _has_kernel(self, x: Tensor) -> bool:
        on_cpu = x.device.type == "cpu" and x.dtype in KERNEL_DTYPES
        return self.kernel is not None and on_cpu and not (x.requires_grad and torch.is_grad_enabled())

    def multiply(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return W x + scaling B (A x) by the kernels."""
        assert self.kernel is not None
        matrix, update, pool = self.kernel
        if x.shape[-1] != self.in_features:  # the kernels would write beyond the outputs
            raise RuntimeError(
                f"the last dimension must be the linear's {self.in_features} inputs, got {tuple(x.shape)}"
            )
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], self.out_features))
        tokens = x.numel() // max(self.in_features, 1)
        native = None if update is None else update.native
        _native().multiply(matrix.native, x.data_ptr(), tokens, y.data_ptr(), pool, x.dtype == torch.bfloat16, native)
        return y

    @abstractmethod
    def _by_torch(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the same through torch."""


class PackedLinear(KernelLinear):
    """A linear that keeps its weight packed; the original has lost its own.

    Its state dict is the original's, the weight made dense: a model that holds it is saved as if nothing had happened.
    """

    def __init__(
        self, matrix: PackedMatrix, original: nn.Module, update: LowRank | None = None, kernel: Kernel | None = None
    ) -> None:
        bias: Any = weight_owner(original).bias
        super().__init__((matrix.rows, matrix.cols), original, bias, kernel)
        self.matrix, self.update = matrix, update
        self._whole: dict[torch.dtype, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """The dense weight as the original module stores it (transposed for Conv1D), made anew at every call.

        Code that multiplies by it itself (DoRA) is right, and slow.
        """
        whole = dense(self.matrix, self.dtype)
        return whole.T.contiguous() if isinstance(weight_owner(self.original[0]), Conv1D) else whole

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the dense weight; bfloat16 for int8."""
        return torch.bfloat16 if self.matrix.scales is not None else self.matrix.values.dtype

    def _by_torch(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = linear(x, self._dense(x), None if self.bias is None else self.bias.to(x.dtype))
        if self.update is None:
            return y
        a, b = (part.to(x.device, x.dtype) for part in (self.update.a, self.update.b))
        return y + linear(linear(x, a), b) * self.update.scaling

    def _dense(self, x: Tensor) -> Tensor:
        """Return the dense weight for torch; kept where there are no kernels, since it is all that multiplies."""
        if self.kernel is not None or x.device.type != "cpu":
            return dense(self.matrix, x.dtype).to(x.device)
        if x.dtype not in self._whole:
            self._whole = {x.dtype: dense(self.matrix, x.dtype)}
        return self._whole[x.dtype]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save what the original would have: its names, the dense weight as it is stored there."""
        (original,) = self.original
        original.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        below = "" if weight_owner(original) is original else "base_layer."
        destination[f"{prefix}{below}weight"] = self.weight

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        kept = self.matrix.values.numel() / max(self.in_features * self.out_features, 1)
        rank = f", rank={self.update.a.shape[0]}" if self.update else ""
        return f"{self.in_features}, {self.out_features}, {self.matrix.values_dtype}, kept={kept:.2f}{rank}"


class DenseLinear(KernelLinear):
    """A dense linear by the kernels, which hold a copy of its weight: a head, whose weight embeddings share."""

    def __init__(self, original: nn.Linear, kernel: Kernel) -> None:
        super().__init__((original.out_features, original.in_features), original, original.bias, kernel)
        self.weight = original.weight

    def _by_torch(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def weight_owner(original: nn.Module) -> nn.Module:
    """Return the module that holds the weight: below PEFT's layer its base."""
    base: nn.Module = original.get_base_layer() if isinstance(original, LoraLayer) else original
    return base


@cache
def _native() -> Any:
    from shears.runtime.native import _native as extension

    return extension


@cache
def say_without_kernels() -> None:
    """Say once that there are no kernels."""
    logger.warning(
        "shears was built without its C++ kernels: packed weights are made dense in memory and torch multiplies; "
        "install a C++ compiler and shears again for the speed"
    )


def kernels_or_say() -> bool:
    """Tell whether the kernels are there; where they are not, say so once."""
    if not kernels_available():
        say_without_kernels()
    return kernels_available()


_handles = itertools.count()
_alive: "weakref.WeakValueDictionary[int, KernelLinear]" = weakref.WeakValueDictionary()
_library = torch.library.Library("shears", "DEF")  # what torch.compile sees of the kernels
_library.define("multiply(Tensor x, int handle, int rows) -> Tensor")


def _multiply(x: Tensor, handle: int, rows: int) -> Tensor:
    return _alive[handle].multiply(x)


def _fake(x: Tensor, handle: int, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


_library.impl("multiply", _multiply, "CPU")
torch.library.register_fake("shears::multiply", _fake)
