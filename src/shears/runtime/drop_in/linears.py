"""Linears that the C++ kernels multiply by, for nn.Linear, Conv1D or PEFT's LoRA layer.

y = W x + scaling B (A x) + bias. Without the kernels, and for dtypes or devices that they do not
support, torch multiplies by the dense weight: unpacked once if there are no kernels (memory as
before packing), else at every call. Gradients of inputs are those of the dense weight, unpacked
again in the backward; a packed weight has none itself.

Shapes: O outputs, I inputs, R ranks, * any leading dimensions.
"""

import itertools
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed.layout import PackedMatrix, dense
from shears.errors import InputError
from shears.models.blocks import LoraUpdate

KERNEL_DTYPES = (torch.float32, torch.bfloat16)


class Kernel(NamedTuple):
    """The arguments of the C++ kernels: a matrix, its update, and a pool of threads."""

    matrix: Any  # shears.runtime.native.kernels.KernelMatrix
    update: Any  # shears.runtime.native.kernels.KernelUpdate, or None
    pool: Any  # shears.runtime.native.kernels.Pool


class UnpackedWeight(Tensor):
    """The dense weight of a packed linear: to be read, since writing it would change no output."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results are plain tensors

    @property
    def data(self) -> Tensor:
        """The numbers; InputError for others in their place, which PEFT writes when it merges."""
        return super().data

    @data.setter
    def data(self, value: Tensor) -> None:
        raise InputError(
            "a packed weight cannot be changed, so that no adapter is merged into it or started from it; call "
            "densify_linears on the model first"
        )


class KernelLinear(nn.Linear):
    """A linear that multiplies by its kernel, if it has one, in place of `original`.

    PEFT puts adapters on it as on any nn.Linear.
    """

    bias: Tensor | None  # type: ignore[assignment]

    def __init__(self, shape: tuple[int, int], original: nn.Module, bias: Tensor | None, kernel: Kernel | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.kernel = kernel
        self.original = (original,)  # in a tuple, so that torch does not register it as a submodule
        self.bias = bias
        self.handle = next(_handles)
        _linears[self.handle] = self

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return the outputs in the dtype of x, or of autocast where it is on."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        on_cpu = x.device.type == "cpu" and x.dtype in KERNEL_DTYPES
        if self.kernel is None or not on_cpu or (x.requires_grad and torch.is_grad_enabled()):
            return self._by_torch(x)
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.shears.multiply(x, self.handle, self.out_features)
        else:
            y = self.multiply(x)
        return y if self.bias is None else y.add_(self.bias)

    def multiply(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return W x + scaling B (A x) by the kernels."""
        assert self.kernel is not None
        matrix, update, pool = self.kernel
        if x.shape[-1] != self.in_features:  # the kernels would read and write out of bounds
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
        """Return the same product by torch."""


class PackedLinear(KernelLinear):
    """A linear that keeps its weight packed; the original module has lost its own.

    Its state dict is the original's with the dense weight: the model is saved like any other.
    """

    def __init__(
        self, matrix: PackedMatrix, original: nn.Module, update: LoraUpdate | None = None, kernel: Kernel | None = None
    ) -> None:
        bias: Any = weight_owner(original).bias
        super().__init__((matrix.rows, matrix.cols), original, bias, kernel)
        self.matrix = matrix
        self.update = update
        self._unpacked: dict[torch.dtype, Tensor] = {}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """`dense_weight`, which cannot be written.

        Code that multiplies by the weight itself (DoRA) gets correct results, slowly.
        """
        return self.dense_weight().as_subclass(UnpackedWeight)

    def dense_weight(self) -> Tensor:
        """Return the dense weight in the original's layout, unpacked at every call."""
        unpacked = dense(self.matrix, self.dtype)
        return unpacked.T.contiguous() if isinstance(weight_owner(self.original[0]), Conv1D) else unpacked

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the dense weight; bfloat16 for int8."""
        return torch.bfloat16 if self.matrix.scales is not None else self.matrix.values.dtype

    def _by_torch(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = self._product(x) if torch.compiler.is_compiling() else _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _product(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = linear(x, self._dense(x))
        if self.update is None:
            return y
        a, b = self._factors(x)
        return y + linear(linear(x, a), b) * self.update.scaling

    def input_gradient(self, gradient: Float[Tensor, "*B O"]) -> Float[Tensor, "*B I"]:
        """Return the gradient of the inputs for that of the outputs."""
        whole = gradient @ self._dense(gradient)
        if self.update is None:
            return whole
        a, b = self._factors(gradient)
        return whole + (gradient @ b @ a) * self.update.scaling

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return A (R x I) and B (O x R) of the adapter, where and as that tensor is."""
        assert self.update is not None
        return self.update.a.to(like.device, like.dtype), self.update.b.to(like.device, like.dtype)

    def _dense(self, x: Tensor) -> Tensor:
        """Return the dense weight for torch; kept without kernels, when every call needs it."""
        if self.kernel is not None or x.device.type != "cpu":
            return dense(self.matrix, x.dtype).to(x.device)
        if x.dtype not in self._unpacked:
            self._unpacked = {x.dtype: dense(self.matrix, x.dtype)}
        return self._unpacked[x.dtype]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the original's state, with the dense weight in its place."""
        (original,) = self.original
        original.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        below = "" if weight_owner(original) is original else "base_layer."
        destination[f"{prefix}{below}weight"] = self.dense_weight()

    def extra_repr(self) -> str:
        """Return this linear's line in `print(model)`."""
        kept = self.matrix.num_kept / max(self.in_features * self.out_features, 1)
        rank = f", rank={self.update.a.shape[0]}" if self.update else ""
        return f"{self.in_features}, {self.out_features}, {self.matrix.values_dtype}, kept={kept:.2f}{rank}"


class MergedLinear(PackedLinear):
    """A packed linear and a frozen adapter as one weight, W + scaling B A, in one product."""

    def dense_weight(self) -> Tensor:
        whole = super().dense_weight()
        if self.update is None:
            return whole
        added = (self.update.b.float() @ self.update.a.float()) * self.update.scaling
        transposed = isinstance(weight_owner(self.original[0]), Conv1D)
        return (whole.float() + (added.T if transposed else added)).to(whole.dtype)


class _Product(torch.autograd.Function):
    """W x + scaling B (A x) of a packed linear; nothing is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedLinear) -> Tensor:
        ctx.packed = packed
        by_kernel = packed.kernel is not None and x.device.type == "cpu" and x.dtype in KERNEL_DTYPES
        return packed.multiply(x) if by_kernel else packed._product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.packed.input_gradient(gradient), None


def _refusing(change: str) -> Callable[..., NoReturn]:
    def method(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"an adapter that is packed with its linear cannot be {change}; call densify_linears on the model first, "
            "or sparsify_linears with fuse=False"
        )

    return method


class FusedLinear(PackedLinear):
    """A LoRA layer of PEFT: the packed weight and its adapter at packing, in one product.

    Its parameters are shown and saved as PEFT's, but changing them changes no output. A method of
    PEFT's layers that would have no effect here raises InputError.
    """

    merged_adapters: Sequence[str] = ()
    merged = False
    disable_adapters = False
    cast_input_dtype_enabled = True
    adapter_layer_names = ("lora_A", "lora_B")
    other_param_names: Sequence[str] = ()
    lora_embedding_A: Mapping[str, Tensor] = {}  # noqa: N815  # PEFT's name

    def __init__(self, matrix: PackedMatrix, original: LoraLinear, update: LoraUpdate, kernel: Kernel | None) -> None:
        super().__init__(matrix, original, update, kernel)
        self.lora_A = original.lora_A
        self.lora_B = original.lora_B

    def as_one_weight(self) -> MergedLinear:
        """Return the same product as one frozen linear, whose adapter PEFT does not know."""
        return MergedLinear(self.matrix, weight_owner(self.original[0]), self.update, self.kernel).eval()

    def forward(self, x: Float[Tensor, "*B I"], adapter_names: object = None) -> Float[Tensor, "*B O"]:
        """Return the outputs; InputError if PEFT passes an adapter per row."""
        if adapter_names is not None:
            _refusing("chosen by row")()
        return super().forward(x)

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters of PEFT's layer."""
        names: list[str] = self.original[0].active_adapters  # type: ignore[assignment]
        return names

    @property
    def active_adapter(self) -> Any:
        """The active adapter as PEFT's layer gives it."""
        return self.original[0].active_adapter

    def enable_adapters(self, enabled: bool) -> None:
        """Do nothing; InputError for switching the adapter off."""
        if not enabled:
            _refusing("switched off")()

    def set_adapter(self, adapter_names: str | Sequence[str], *_: Any, **__: Any) -> None:
        """Do nothing; InputError for any adapter but the active one."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if names != self.active_adapters:
            _refusing(f"changed to {', '.join(names)}")()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Do nothing; InputError for training the adapter."""
        if requires_grad:
            _refusing("trained")()

    def unmerge(self) -> None:
        """Do nothing: the adapter is never merged."""

    def unload_and_optionally_merge_module(self, merge: bool, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError."""
        _refusing("merged" if merge else "taken off")()

    merge = _refusing("merged")
    delete_adapter = _refusing("deleted")
    update_layer = _refusing("joined by another")  # PEFT calls it to add an adapter
    get_base_layer = _refusing("joined by another")

    def _get_available_adapters(self) -> set[str]:
        return set(self.lora_A)


LoraLayer.register(FusedLinear)


class DenseLinear(KernelLinear):
    """A dense head, multiplied by the kernels, which hold a copy of its weight."""

    def __init__(self, original: nn.Linear, kernel: Kernel) -> None:
        super().__init__((original.out_features, original.in_features), original, original.bias, kernel)
        self.weight = original.weight

    def _by_torch(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def weight_owner(original: nn.Module) -> nn.Module:
    """Return the module that holds the weight: PEFT's base layer, else the module itself."""
    base: nn.Module = original.get_base_layer() if isinstance(original, LoraLayer) else original
    return base


@cache
def _native() -> Any:
    from shears.runtime.native import _native as extension

    return extension


_handles = itertools.count()
_linears: "weakref.WeakValueDictionary[int, KernelLinear]" = weakref.WeakValueDictionary()
_library = torch.library.Library("shears", "DEF")  # the operator that torch.compile sees in place of the kernels
_library.define("multiply(Tensor x, int handle, int rows) -> Tensor")
_library.impl("multiply", lambda x, handle, rows: _linears[handle].multiply(x), "CPU")
torch.library.register_fake("shears::multiply", lambda x, handle, rows: x.new_empty((*x.shape[:-1], rows)))
