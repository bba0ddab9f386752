"""A pretended GPU for a torch without CUDA: tensors with CUDA's dispatch keys, values on the CPU, live bytes counted.

Autocast is CUDA's own here, and a tensor left on the CPU raises as on a card. Import this module before torch, in a
process of its own: torch asks for CUDA's hooks once. It does not show kernels' numbers, streams, or time.
"""

import ctypes
import importlib.util
import os
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

TORCH = Path(str(importlib.util.find_spec("torch").submodule_search_locations[0]))  # type: ignore[union-attr, index]
for name in ("libc10.so", "libtorch_cpu.so", "libtorch.so"):
    ctypes.CDLL(str(TORCH / "lib" / name), mode=ctypes.RTLD_GLOBAL)
NATIVE = ctypes.CDLL(os.environ["SHEARS_PRETENDED_GPU"])  # guard.cpp, compiled
NATIVE.install()

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  before CUDA is pretended: they ask for its C functions
import torch._inductor  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
INDEXING = (
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
)  # fmt: skip
"""Operations whose indices may be on the CPU."""
SYNCS = (
    aten.nonzero.default, aten.equal.default, aten.masked_select.default, aten.is_nonzero.default,
    aten.bincount.default, aten._local_scalar_dense.default,
)  # fmt: skip
"""Operations that let the CPU wait for the device, since their result is a number or has its size."""
COUNTS: Counter[str] = Counter()
"""sync, to_cpu, to_cuda (copies), weight_casts, forwards and scaled (steps in fp16) since the last reset."""
PLACES: Counter[tuple[str, str]] = Counter()
"""The same by the line of shears that caused it."""
STORAGES: dict[int, list[int]] = {}
MEMORY = {"now": 0, "peak": 0, "loaded": 0}
"""Bytes on the device: now, at most, and at most before the first forward."""
FAST_BF16 = {"value": True}


class _Bytes:
    """Counts the bytes of a storage while a tensor of it lives."""

    def __init__(self, held: Tensor) -> None:
        self.storage = held.untyped_storage()
        self.key = self.storage._cdata
        if self.key not in STORAGES:
            STORAGES[self.key] = [self.storage.nbytes(), 0]
            MEMORY["now"] += self.storage.nbytes()
            MEMORY["peak"] = max(MEMORY["peak"], MEMORY["now"])
        STORAGES[self.key][1] += 1

    def __del__(self) -> None:
        entry = STORAGES[self.key]
        entry[1] -= 1
        if not entry[1]:
            MEMORY["now"] -= entry[0]
            del STORAGES[self.key]


class OnCuda(Tensor):
    """A tensor on the pretended device; `held` is the tensor of the CPU that it computes with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCuda":
        """Wrap a tensor of the CPU, without a copy."""
        tensor: OnCuda = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=CUDA, requires_grad=False
        )
        tensor.held = held
        return tensor

    def __init__(self, held: Tensor) -> None:
        self.bytes = _Bytes(held)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:
        """Return the values, for which a CPU waits."""
        count("sync")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refuse, as CUDA's tensors do."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def data_ptr(self) -> int:
        """Return the address of the held values."""
        return self.held.data_ptr()

    def storage(self) -> Any:
        """Return the storage of the held values, as safetensors asks for it."""
        return self.held.storage()

    def untyped_storage(self) -> Any:
        """Return the storage of the held values."""
        return self.held.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the held values."""
        return self.held.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> "OnCuda":
        """Copy the held values, and what Python code put on the tensor."""
        new = OnCuda(self.held.detach().clone()).requires_grad_(self.requires_grad)
        new.__dict__.update({name: value for name, value in self.__dict__.items() if name not in ("held", "bytes")})
        memo[id(self)] = new
        return new  # type: ignore[return-value]

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
        """Run an operation on the device."""
        return run(func, args, kwargs or {})


def count(kind: str) -> None:
    """Count an event, also by the last line of shears on the stack."""
    COUNTS[kind] += 1
    own = [frame for frame in traceback.extract_stack() if "/src/shears/" in frame.filename]
    PLACES[kind, f"{own[-1].filename.split('/shears/')[-1]}:{own[-1].lineno}" if own else "elsewhere"] += 1


def unwrapped(tree: Any) -> Any:
    """Return arguments with the held tensors in place of those on the device."""
    return tree_map_only(OnCuda, lambda tensor: tensor.held, tree)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the held tensors; RuntimeError where its tensors are on two devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnCuda) for tensor in tensors)
    device = kwargs.get("device")
    to_cuda = device is not None and torch.device(device).type == "cuda"
    if not there and not to_cuda:
        return func(*args, **kwargs)
    if func is aten._to_copy.default:
        return _moved(func, args[0], kwargs, to_cuda if device is not None else isinstance(args[0], OnCuda))
    if func is aten.copy_.default:
        target, source = args[:2]
        if source.ndim + target.ndim and type(source) is not type(target):
            count("to_cuda" if isinstance(target, OnCuda) else "to_cpu")
        unwrapped(target).copy_(unwrapped(source))
        return target
    _watch(func, args, tensors)
    if there:
        _refuse_two_devices(func, args, tensors)
    if device is not None and not to_cuda:  # such as empty_like(device="cpu")
        return func(*unwrapped(args), **unwrapped(kwargs))
    given = {key: value for key, value in unwrapped(kwargs).items() if key not in ("device", "pin_memory")}
    if device is not None:
        given["device"] = CPU
    result = SPECIAL.get(func, func)(*unwrapped(args), **given)
    wrapped = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, OnCuda) else OnCuda(tensor), result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _moved(func: Any, source: Any, kwargs: dict[str, Any], to_cuda: bool) -> Any:
    given = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    result = func(unwrapped(source), **given)
    if isinstance(source, OnCuda) != to_cuda:
        count("to_cuda" if to_cuda else "to_cpu")
    elif to_cuda and source.ndim == 2 and min(source.shape) >= 16 and result.dtype != source.dtype:
        count("weight_casts")
    return OnCuda(result) if to_cuda else result


def _watch(func: Any, args: Any, tensors: list[Tensor]) -> None:
    masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)] if func in INDEXING else []
    if func in SYNCS or any(isinstance(mask, OnCuda) and mask.dtype == torch.bool for mask in masks):
        count("sync")
    if func is aten.embedding.default and not COUNTS["forwards"]:
        MEMORY["loaded"] = MEMORY["peak"]
    counted = {aten.embedding.default: "forwards", aten._amp_update_scale_.default: "scaled"}
    if func in counted:
        COUNTS[counted[func]] += 1


def _refuse_two_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    indices = tree_leaves(args[1]) if func in INDEXING else []
    left = [
        tensor
        for tensor in tensors
        if not isinstance(tensor, OnCuda)
        and tensor.ndim > 0
        and tensor.device.type != "meta"
        and not any(tensor is index for index in indices)
    ]
    if left:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu, in {func} "
            f"(a tensor of shape {tuple(left[0].shape)} is on the CPU)"
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Any, causal: bool, scale: Any) -> tuple[Tensor, Tensor]:
    scores = (q.float() @ k.float().mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return torch._safe_softmax(scores, -1), torch.logsumexp(scores, -1)  # 0 in rows that are masked out


def _efficient(
    q: Any, k: Any, v: Any, bias: Any, _: Any, dropout: float = 0.0, causal: bool = False, *, scale: Any = None
) -> Any:
    weights, total = _attend(q, k, v, bias, causal, scale)
    result = (weights @ v.float()).to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # CUDA's order in memory
    seed = torch.zeros((), dtype=torch.int64)
    return result, total, seed, seed.clone()


def _efficient_backward(gradient: Any, q: Any, k: Any, v: Any, bias: Any, *rest: Any, scale: Any = None) -> Any:
    mask, causal = rest[5], bool(rest[6]) if len(rest) > 6 else False
    weights, _ = _attend(q, k, v, bias, causal, scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    of_weights = gradient.float() @ v.float().mT
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    of_q = (of_scores @ k.float() * factor).to(q.dtype)
    of_k = (of_scores.mT @ q.float() * factor).to(k.dtype)
    return of_q, of_k, (weights.mT @ gradient.float()).to(v.dtype), of_scores.to(bias.dtype) if mask[3] else None


def _softmax(name: str) -> Any:
    plain = {"softmax": aten._softmax.default, "log_softmax": aten._log_softmax.default}[name]
    return lambda x, dim, wide: plain(x.float(), dim, False) if wide else plain(x, dim, False)


def _softmax_backward(plain: Any) -> Any:
    return lambda gradient, result, dim, dtype: plain(gradient.float(), result.float(), dim, torch.float32).to(dtype)


SPECIAL: Mapping[Any, Any] = {  # what a CPU has in other number formats only, or not at all
    aten.histc.default: lambda x, *args, **kwargs: aten.histc.default(x.float(), *args, **kwargs).to(x.dtype),
    aten._softmax.default: _softmax("softmax"),
    aten._log_softmax.default: _softmax("log_softmax"),
    aten._softmax_backward_data.default: _softmax_backward(aten._softmax_backward_data.default),
    aten._log_softmax_backward_data.default: _softmax_backward(aten._log_softmax_backward_data.default),
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
}
ATTENTION = torch.nn.functional.scaled_dot_product_attention


def _bias(mask: Any, query: Any, key: Any) -> Any:
    if mask is None:
        return None
    if not isinstance(mask, OnCuda):
        raise RuntimeError("Expected attn_mask to be on the device of query, but it is on the CPU")  # noqa: TRY004
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    elif mask.dtype != query.dtype:
        raise RuntimeError(f"Expected attn_mask of query's dtype {query.dtype}, got {mask.dtype}")
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def attention(  # noqa: PLR0917  torch's signature
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """CUDA's memory-efficient attention, which a torch without CUDA does not choose by itself."""
    if not isinstance(query, OnCuda):
        return ATTENTION(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise RuntimeError("Expected query, key, and value to have the same dtype")
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    bias = _bias(attn_mask, query, key)
    needed = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, needed, dropout_p, is_causal, scale=scale
    )[0]


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


PRETENDED: Mapping[str, Any] = {
    "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
    "is_initialized": lambda: True,
    "set_device": lambda device: None, "synchronize": lambda device=None: None, "empty_cache": lambda: None,
    "is_bf16_supported": lambda including_emulation=True: including_emulation or FAST_BF16["value"],
    "_lazy_init": lambda: None, "get_device_capability": lambda device=None: (8, 9),
    "get_device_name": lambda device=None: "pretended",
    "mem_get_info": lambda device=None: (24 << 30, 24 << 30),
    "current_stream": lambda device=None: None, "memory_allocated": lambda device=None: MEMORY["now"],
    "max_memory_allocated": lambda device=None: MEMORY["peak"], "memory_reserved": lambda device=None: MEMORY["now"],
    "reset_peak_memory_stats": lambda device=None: None,
}  # fmt: skip
RANDOM: Mapping[str, Any] = {  # numbers are drawn on the CPU
    "get_rng_state": lambda device=0: torch.empty(0, dtype=torch.uint8),
    "set_rng_state": lambda state, device=0: None,
    "get_rng_state_all": list,
    "set_rng_state_all": lambda states: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
}


@contextmanager
def pretended_gpu(*, fast_bf16: bool = True) -> Iterator[None]:
    """Let torch have one CUDA device, with or without bf16 in hardware."""
    if NATIVE.pretend(1) != 1:
        raise RuntimeError("torch asked for CUDA's hooks before they were installed; import this module first")
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    FAST_BF16["value"] = fast_bf16
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **PRETENDED, **RANDOM))
        stack.enter_context(patch.multiple(torch.cuda.random, **RANDOM))
        stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        stack.enter_context(patch.object(torch._C, "_cuda_getDeviceCount", lambda: 1, create=True))
        backend = "accelerate.state.get_torch_accelerator_backend"
        stack.enter_context(patch(backend, lambda: ("cuda", torch.cuda), create=True))
        stack.enter_context(_Device())
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)
            NATIVE.pretend(0)
