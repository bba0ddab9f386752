"""Tensors that say they are on a CUDA device and compute on the CPU: a tensor left behind fails on any machine.

torch's own FakeTensorMode holds no values, so that nothing that reads one (a threshold, a count, a list) can run under
it, and its backward pass needs a build of torch for CUDA. `OnCuda` holds its values in a tensor of the CPU. It refuses
what CUDA refuses (two devices in one operation, `numpy`), and allows what CUDA allows (numbers and indices on the CPU).
It does not show what the hardware does: memory, streams, the numbers of CUDA's kernels, autocast.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
MOVES = (aten.copy_.default, aten._to_copy.default, aten.detach.default, aten.lift_fresh.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
"""Operations whose indices may be on the CPU."""


class OnCuda(Tensor):
    """A tensor whose device is CUDA for all Python code; `held` is the tensor of the CPU that it computes with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCuda":
        """Wrap a tensor of the CPU, without a copy."""
        tensor: OnCuda = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=CPU
        )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """CUDA's first device."""
        return CUDA

    def data_ptr(self) -> int:
        """Return the address of the held values."""
        return self.held.data_ptr()

    def storage(self) -> Any:
        """Return the storage of the held values, as safetensors asks for it."""
        return self.held.storage()

    def untyped_storage(self) -> Any:
        """Return the storage of the held values."""
        return self.held.untyped_storage()

    is_cuda = True
    is_cpu = False
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Tell torch what the tensor holds, so that `Module.to` swaps tensors in place of their data."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: object) -> "OnCuda":
        """Return the tensor that was flattened."""
        return OnCuda(inner["held"])

    def __repr__(self) -> str:  # type: ignore[override]
        """Name the device."""
        return f"OnCuda({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operation on the held tensors; RuntimeError where its tensors are on two devices."""
        kwargs = kwargs or {}
        _refuse_two_devices(func, args, kwargs)
        args_held, kwargs_held = tree_map_only(OnCuda, lambda tensor: tensor.held, (args, kwargs))
        result = func(*args_held, **kwargs_held)
        if func is aten.copy_.default and not isinstance(args[0], OnCuda):
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, OnCuda, result))


def _refuse_two_devices(func: Any, args: Any, kwargs: Any) -> None:
    if func in MOVES:
        return
    indices = tree_leaves(args[1]) if func in INDEXING else []
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    left = [
        each
        for each in tensors
        if not isinstance(each, OnCuda) and each.ndim > 0 and not any(each is index for index in indices)
    ]
    if left:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got at least two devices, cuda:0 and cpu, in {func} "
            f"(a tensor of shape {tuple(left[0].shape)} is on the CPU)"
        )


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnCuda(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Tensor:
        return gradient.held  # type: ignore[no-any-return]


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        return tensor.held.detach().clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return OnCuda(gradient)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, itself if it is there."""
    if isinstance(tensor, OnCuda) == (device.type == "cuda"):
        return tensor
    result: Tensor = (_ToCuda if device.type == "cuda" else _ToCpu).apply(tensor)
    return result


class FakeCuda(TorchFunctionMode):
    """Within this mode, what Python code makes on or moves to a CUDA device is `OnCuda`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, its devices replaced."""
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func is Tensor.cpu:
            return moved(args[0], CPU)
        if func is Tensor.cuda:
            return moved(args[0], CUDA)
        if func is Tensor.tolist and isinstance(args[0], OnCuda):
            return args[0].held.tolist()
        if func is Tensor.numpy and isinstance(args[0], OnCuda):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        kwargs.pop("pin_memory", None)
        device = torch.device(kwargs.get("device") or "meta")
        if device.type == "meta":
            return func(*args, **kwargs)
        return tree_map_only(Tensor, lambda tensor: moved(tensor, device), func(*args, **{**kwargs, "device": CPU}))


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Move and convert as `Tensor.to` does."""
    given = [*args, *kwargs.values()]
    like = [each for each in given if isinstance(each, Tensor)]
    devices = [torch.device(each) for each in given if isinstance(each, torch.device | str)]
    dtypes = [each for each in given if isinstance(each, torch.dtype)]
    (device,) = devices or [each.device for each in like] or [tensor.device]
    (dtype,) = dtypes or [each.dtype for each in like] or [tensor.dtype]
    if device.type == "meta":
        return Tensor.to(tensor, device, dtype)
    return Tensor.to(moved(tensor, device), dtype, copy=kwargs.get("copy", False))


PRETENDED: Mapping[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "is_bf16_supported": lambda including_emulation=True: True,
}
RANDOM: Mapping[str, Any] = {  # numbers are drawn on the CPU
    "get_rng_state": lambda device=0: torch.empty(0, dtype=torch.uint8),
    "set_rng_state": lambda state, device=0: None,
    "get_rng_state_all": list,
    "set_rng_state_all": lambda states: None,
}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make torch say that it has one CUDA device."""
    with (
        patch.multiple(torch.cuda, **PRETENDED, **RANDOM),
        patch.multiple(torch.cuda.random, **RANDOM),
        patch("accelerate.state.get_torch_accelerator_backend", lambda: ("cuda", torch.cuda), create=True),
        FakeCuda(),
    ):
        yield
