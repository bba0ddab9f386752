"""LoRA on linears that share one input, in one operator: their As are one product.

PEFT computes every layer alone: it casts the input for the linear and again for A, multiplies B's
output by the scaling and adds it to the linear's, each in a pass over memory, and under selective
checkpointing all of that once more in the backward pass. Here the sum is the last step of B's
product, and its result is what a checkpoint keeps.

y_i = W_i x + b_i + (scaling_i B_i) (m_i * A_i x) for the linears i of one input x; m masks ranks
(see `adapt.elastic`). Both products sum in float32 and their sum is rounded once, where PEFT rounds
each, so that results differ by rounding.

T tokens (all leading dimensions of x), I input features, O output features of a linear, R ranks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shears.models.devices import DTYPES, device_of
from shears.models.sparse_adapter import MASK


class _Layer(NamedTuple):
    """The tensors of a linear with LoRA; those that are not there are empty."""

    weight: Float[Tensor, "O I"]
    bias: Tensor
    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    mask: Tensor


SIZE = len(_Layer._fields)
TRIAL = 4  # tokens


@torch.library.custom_op("shears::lora_linears", mutates_args=())
def _forward(  # noqa: PLR0913, PLR0917  # an operator takes lists of tensors, not layers
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    masks: Sequence[Tensor],
    scalings: Sequence[float],
) -> list[Tensor]:
    """Return the outputs, each T x O, and last the masked A x side by side, in the weights' dtype."""
    dtype = weights[0].dtype
    x = x.to(dtype)
    narrow = x @ torch.cat([each.to(dtype) for each in a]).T
    sizes = [len(each) for each in a]
    for part, mask in zip(narrow.split(sizes, dim=1), masks, strict=True):
        _mask(part, mask)
    outputs = []
    for weight, bias, part, wide, scaling in zip(weights, biases, narrow.split(sizes, dim=1), b, scalings, strict=True):
        output = nn.functional.linear(x, weight, bias.to(dtype) if bias.numel() else None)
        outputs.append(output.addmm_(part, (wide * scaling).to(dtype).T))
    return [*outputs, narrow]


def _mask(part: Float[Tensor, "T R"], mask: Tensor) -> None:
    """Multiply by a mask of ranks, in place."""
    if mask.numel():
        part.mul_(mask.to(part.dtype))


class _LoraLinears(torch.autograd.Function):
    """The operator and its gradients for x, A and B. Layers come as fields, one after another."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "T I"], scalings: Sequence[float], *fields: Tensor) -> tuple[Tensor, ...]:
        layers = _layers(fields)
        *outputs, narrow = torch.ops.shears.lora_linears(x, *map(list, zip(*layers, strict=True)), list(scalings))
        ctx.scalings = scalings
        ctx.save_for_backward(x, narrow, *fields)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, *fields = ctx.saved_tensors
        layers = _layers(fields)
        dtype = narrow.dtype
        sizes = [len(layer.a) for layer in layers]
        of_narrow = torch.empty_like(narrow)
        of_b = []
        parts = zip(layers, gradients, ctx.scalings, narrow.split(sizes, 1), of_narrow.split(sizes, 1), strict=True)
        for layer, gradient, scaling, part, of_part in parts:
            torch.mm(gradient, (layer.b * scaling).to(dtype), out=of_part)
            _mask(of_part, layer.mask)
            of_b.append((part.T @ gradient).T.to(layer.b.dtype) * scaling)
        of_a = (of_narrow.T @ x.to(dtype)).split(sizes)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_narrow @ torch.cat([layer.a.to(dtype) for layer in layers])).to(x.dtype)
            for layer, gradient in zip(layers, gradients, strict=True):
                of_x = (
                    of_x.add_(gradient @ layer.weight) if of_x.dtype != dtype else of_x.addmm_(gradient, layer.weight)
                )
        of_fields: list[Tensor | None] = []
        for layer, one, other in zip(layers, of_a, of_b, strict=True):
            of_fields += [None, None, one.to(layer.a.dtype), other, None]
        return of_x, None, *of_fields


def _layers(fields: Sequence[Tensor]) -> list[_Layer]:
    return [_Layer(*fields[start : start + SIZE]) for start in range(0, len(fields), SIZE)]


class FusedLora(LoraLinear):  # type: ignore[misc]  # PEFT has no types here
    """PEFT's LoRA on a linear, computed together with its `partners`, which get the same input.

    The first of them that gets an input computes all outputs, and the others take theirs. A
    subclass of PEFT's layer with the same parameters: a layer gets it by `fuse_lora`.
    """

    partners: "tuple[FusedLora, ...]"
    fused_adapter: str
    waiting: tuple[Tensor, Tensor] | None  # the input, and the output that is not taken yet

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum of linear and adapter; PEFT's way unless both compute in autocast's dtype."""
        if args or kwargs or not all(layer._is_plain(x) for layer in self.partners):
            self.waiting = None
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        if self.waiting is None or self.waiting[0] is not x:
            flat = x.reshape(-1, x.shape[-1])
            fields = [tensor for layer in self.partners for tensor in layer._tensors(flat)]
            scalings = [layer.scaling[layer.fused_adapter] for layer in self.partners]
            outputs = _LoraLinears.apply(flat, scalings, *fields)
            for layer, output in zip(self.partners, outputs, strict=True):
                layer.waiting = (x, output.view(*x.shape[:-1], -1))
        assert self.waiting is not None
        taken = self.waiting[1]
        self.waiting = None
        return taken

    def _is_plain(self, x: Tensor) -> bool:
        kind = x.device.type
        return (
            torch.is_autocast_enabled(kind)
            and self.get_base_layer().weight.dtype == torch.get_autocast_dtype(kind)
            and self.active_adapters == [self.fused_adapter]
            and not (self.disable_adapters or self.merged)
        )

    def _rank_mask(self) -> Tensor:
        """Return the mask of ranks, empty without one."""
        a = self.lora_A[self.fused_adapter]
        mask: Tensor | None = a._buffers.get(MASK)
        return a.weight.new_empty(0) if mask is None else mask

    def _tensors(self, flat: Float[Tensor, "T I"]) -> _Layer:
        base = self.get_base_layer()
        a = self.lora_A[self.fused_adapter]
        b = self.lora_B[self.fused_adapter].weight
        bias = flat.new_empty(0) if base.bias is None else base.bias
        return _Layer(base.weight, bias, a.weight, b, self._rank_mask())


@torch.no_grad()
def fuse_lora(model: PeftModel, precision: str, adapter: str = "default") -> int:
    """Fuse plain LoRA of linears that share an input, in place; return how many are fused.

    Which of them share one input shows in a trial under autocast to `precision`; in fp32 none is
    fused. Only LoRA without dropout, variants and biases on an nn.Linear is fused. Parameters,
    their names and files stay as they are; `unfuse_lora` is the inverse.
    """
    groups: dict[int, list[LoraLinear]] = {}
    if precision == "fp32":
        return 0
    with torch.autocast(device_of(model).type, DTYPES[precision]):
        for number, layer in _by_input(model, adapter):
            groups.setdefault(number, []).append(layer)
    for layers in groups.values():
        for each in layers:
            each.__class__ = FusedLora
            each.fused_adapter = adapter
            each.waiting = None
            # not a tuple of modules that torch registers: the layers stay where they are in the
            # model
            each.__dict__["partners"] = tuple(layers)
    return sum(map(len, groups.values()))


def unfuse_lora(model: nn.Module) -> None:
    """Undo `fuse_lora`: the layers are PEFT's own again."""
    for layer in model.modules():
        if isinstance(layer, FusedLora):
            layer.__class__ = LoraLinear
            for name in ("partners", "fused_adapter", "waiting"):
                layer.__dict__.pop(name, None)


def _by_input(model: PeftModel, adapter: str) -> Iterator[tuple[int, LoraLinear]]:
    """Yield the layers that can be fused, and the number of the input tensor that each gets."""
    inputs: list[Tensor] = []  # all kept, so that no two have the same identity
    seen: list[LoraLinear] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        seen.append(layer)

    chosen = [layer for layer in model.modules() if _is_fusible(layer, adapter)]
    handles = [layer.register_forward_pre_hook(note) for layer in chosen]
    was_training = model.training
    model.eval()
    try:
        model(input_ids=torch.arange(TRIAL, device=device_of(model))[None], use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    for layer, each in zip(seen, inputs, strict=True):
        if seen.count(layer) == 1:  # blocks that share their layers call them once each
            yield next(number for number, other in enumerate(inputs) if other is each), layer


def _is_fusible(layer: Any, adapter: str) -> bool:
    if type(layer) is not LoraLinear or adapter not in layer.lora_A:
        return False
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and type(base.weight) is nn.Parameter
        and adapter not in layer.lora_variant
        and not layer.lora_bias.get(adapter)
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and not any(parameter.requires_grad for parameter in base.parameters())
    )
