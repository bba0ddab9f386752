"""Elastic LoRA: ranks beyond the active one are masked by a forward hook on PEFT's own `lora_A`.

Rank r means the first r rows of A and the first r columns of B. Zeroing A's output beyond r equals
slicing both, gives the unused ranks a gradient of exactly zero, and leaves PEFT's layers, files and
merging as they are.

A nested adapter computes scaling * B D A while it trains: D, a fixed diagonal, weighs each
component by the share of the allowed ranks that contain it, and `fold` moves D into A and B.
Smaller ranks are multiplied by the space's factors (decision 53). The masks hold these numbers.

R ranks, O output and I input features of a linear.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from shears.adapt.own_loop import OwnLoopConfig, save_own_loop
from shears.adapt.space import RankConfig, SearchSpace
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.sparse_adapter import MASK

# variants that use the weight of lora_A without calling it, so that no hook on it runs
BYPASSING_A = ("ArrowLinearVariant", "MontecloraLinearVariant", "QALoraLinearVariant", "VeloraLinearVariant")


def _mask_ranks(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Zero the outputs of lora_A beyond the active rank; no closure, so that deepcopy is safe."""
    return output * module.get_buffer(MASK).to(output.dtype)


def lora_layers(model: PeftModel, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the layers with the adapter and the names of their linears in the base model."""
    for name, layer in model.get_base_model().named_modules():
        if LoraLayer in type(layer).__mro__ and adapter in layer.lora_A:  # isinstance accepts FusedLinear too
            yield name, layer


def factors_of(layer: LoraLayer, adapter: str) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
    """Return A and B."""
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


class ElasticAdapter:
    """The handle on a PEFT model whose LoRA ranks can be switched; `remove` undoes it.

    `nested` weighs the components by the diagonal D of nested training until `fold`; an adapter
    with a start of its own, whose B is not zero, must be divided by it first (`unfold`).
    """

    def __init__(self, model: PeftModel, space: SearchSpace, adapter: str = "default", *, nested: bool = False) -> None:
        self.model = model
        self.space = space.nested() if nested else space
        self.adapter = adapter
        self.nested = nested
        layers = dict(lora_layers(model, adapter))
        self._layers = {
            group: [_elastic_layer(layers, name, ranks[0], adapter) for name in space.modules.get(group, ())]
            for group, ranks in space.ranks.items()
        }
        self._hooks = [self._install(layer) for layer in self._all_layers()]
        self.active = self.activate(space.maximal())

    def _all_layers(self) -> list[LoraLayer]:
        return [layer for layers in self._layers.values() for layer in layers]

    def _install(self, layer: LoraLayer) -> torch.utils.hooks.RemovableHandle:
        linear: nn.Linear = layer.lora_A[self.adapter]
        if MASK in dict(linear.named_buffers(recurse=False)):
            raise InputError("a model can be elastic only once; call remove() on its ElasticAdapter first")
        a = linear.weight
        linear.register_buffer(MASK, torch.ones(len(a), device=a.device), persistent=False)
        return linear.register_forward_hook(_mask_ranks)

    def activate(self, config: RankConfig) -> RankConfig:
        """Use these ranks in every following forward; InputError if they are not in the space."""
        config = self.space.check(config)
        for group, layers in self._layers.items():
            masks: dict[int, Tensor] = {}  # by size, for the linears of a group
            for layer in layers:
                # written in place, because compiled code keeps its buffer
                mask = layer.lora_A[self.adapter].get_buffer(MASK)
                if len(mask) not in masks:
                    masks[len(mask)] = self._mask(group, len(mask), config[group])
                mask.copy_(masks[len(mask)])
        self.active = config
        return config

    @contextmanager
    def at(self, config: RankConfig) -> Iterator[None]:
        """Use these ranks inside the context, and those from before afterwards."""
        before = self.active
        self.activate(config)
        try:
            yield
        finally:
            self.activate(before)

    def _mask(self, group: str, size: int, rank: int) -> Float[Tensor, " R"]:
        """Return the mask of `size` components at a rank, times the rank's factor."""
        mask = (torch.arange(size) < rank).float() * self.space.factor(group, rank)
        return mask * self._diagonal(group, size) if self.nested else mask

    def _diagonal(self, group: str, size: int) -> Float[Tensor, " R"]:
        """Return D of a group in float32; components beyond the group's largest rank have 0."""
        weights = torch.tensor(self.space.nested_weights(group))
        return nn.functional.pad(weights, (0, size - len(weights)))

    def _roots(self) -> dict[str, Float[Tensor, " R"]]:
        """Return the roots of D by linear, 1 for components in no allowed rank; empty if not nested."""
        if not self.nested:
            return {}
        roots = {}
        for group, layers in self._layers.items():
            for name, layer in zip(self.space.modules.get(group, ()), layers, strict=True):
                diagonal = self._diagonal(group, len(factors_of(layer, self.adapter)[0]))
                roots[name] = torch.where(diagonal > 0, diagonal.sqrt(), 1.0)
        return roots

    def fold(self) -> None:
        """Multiply A and B by the roots of D, in place: plain LoRA with the same outputs."""
        self._multiply(self._roots())
        self.nested = False
        self.activate(self.active)

    def unfold(self) -> None:
        """Divide A and B by the roots of D, in place: every cut of B D A is then that of B A.

        For an adapter that has a start of its own before nested training. Its components are parts
        of a whole, not estimates of one update, so smaller ranks then have no factors.
        """
        self._multiply({name: 1 / roots for name, roots in self._roots().items()})
        self.space = replace(self.space, factors={})
        self.activate(self.active)

    @contextmanager
    def _folded(self) -> Iterator[None]:
        """Hold the factors that `fold` would leave; afterwards those from before, bit for bit."""
        roots = self._roots()
        layers = [layer for name, layer in lora_layers(self.model, self.adapter) if name in roots]
        weights = [factor for layer in layers for factor in factors_of(layer, self.adapter)]
        kept = [weight.detach().clone() for weight in weights]
        self._multiply(roots)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, before in zip(weights, kept, strict=True):
                    weight.copy_(before)

    @torch.no_grad()
    def _multiply(self, factors: Mapping[str, Float[Tensor, " R"]]) -> None:
        layers = dict(lora_layers(self.model, self.adapter))
        for name, factor in factors.items():
            a, b = factors_of(layers[name], self.adapter)
            a.mul_(factor.to(a)[:, None])
            b.mul_(factor.to(b))

    def num_parameters(self, config: RankConfig) -> int:
        """Return the parameters of the sub-adapter: rank * (inputs + outputs), summed over its linears."""
        return sum(
            config[group] * (layer.in_features + layer.out_features)
            for group, layers in self._layers.items()
            for layer in layers
        )

    def save(self, folder: str | Path, *, base: str | Path | None = None, **about: Any) -> Path:
        """Write the adapter to `folder` as a super-adapter for search and export; return the folder.

        For a training loop of your own, such as transformers' or TRL's Trainer with an
        `NLSCallback`. `base` is the model's folder or hub id, by default the name that it was
        loaded by; the other keywords are the fields of `OwnLoopConfig`. A nested adapter is written
        folded and stays as it is in memory. The folder appears whole; of several processes the
        first one writes. InputError if the folder exists and is not empty, if the adapter is not
        plain LoRA on the space's linears, or if the frozen weights in memory are not those of
        `base`.
        """
        settings = build(OwnLoopConfig, "save", about)
        named = None if base is None else str(base)
        with self._folded():
            return save_own_loop(Path(folder), self.model, self.adapter, self.space, named, settings)

    def remove(self) -> None:
        """Remove hooks and masks: the model is then a plain PEFT model at its largest ranks."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._all_layers():
            linear = layer.lora_A[self.adapter]
            linear._buffers.pop(MASK, None)
            linear._non_persistent_buffers_set.discard(MASK)
        self._hooks = []


def _variant(layer: LoraLayer, adapter: str) -> str | None:
    """Return PEFT's name of the layer's variant of LoRA, None for plain LoRA."""
    variant = layer.lora_variant.get(adapter)
    return None if variant is None else type(variant).__name__


def _elastic_layer(layers: dict[str, LoraLayer], name: str, max_rank: int, adapter: str) -> LoraLayer:
    layer = layers.get(name)
    if layer is None:
        raise InputError(f"every linear of the search space must carry the adapter {adapter!r}; {name} does not")
    if layer.use_rslora.get(adapter):
        raise InputError(
            f"an elastic adapter must scale all ranks alike, {name} uses rank-stabilised LoRA; set use_rslora=False"
        )
    if (variant := _variant(layer, adapter)) in BYPASSING_A:
        raise InputError(f"ranks are masked behind lora_A, which {variant} of {name} does not call; use plain LoRA")
    rank = len(factors_of(layer, adapter)[0])
    if rank < max_rank:
        raise InputError(f"the adapter of {name} must have the largest rank of its group ({max_rank}), got {rank}")
    return layer


def make_elastic(
    model: PeftModel, space: SearchSpace, adapter: str = "default", *, nested: bool = False
) -> ElasticAdapter:
    """Return the handle on the ranks of a PEFT model's adapter; the largest are active first.

    `nested` trains all allowed ranks at once, by a diagonal between the factors (see
    `ElasticAdapter`).
    """
    return ElasticAdapter(model, space, adapter, nested=nested)


@torch.no_grad()
def reorder(model: PeftModel, adapter: str = "default") -> None:
    """Sort every layer's components by size, in place, by the singular values of B A.

    The product stays. Of all adapters of rank r, the first r components then have the nearest
    product (Eckart and Young). Both vectors of a component are equally long.
    """
    for _, layer in lora_layers(model, adapter):
        a = layer.lora_A[adapter].weight
        b = layer.lora_B[adapter].weight
        ordered_a, ordered_b = by_size(a, b)
        a.copy_(ordered_a)
        b.copy_(ordered_b)


def by_size(a: Float[Tensor, "R I"], b: Float[Tensor, "O R"]) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
    """Return A and B of the same product: falling singular values, their roots in both factors.

    Computed in float64 from the R x R core between two orthonormal bases; components beyond min(O,
    I) are zero.
    """
    left, left_core = torch.linalg.qr(b.double())
    right, right_core = torch.linalg.qr(a.double().T)
    turn, values, turn_back = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    count = len(values)
    roots = values.sqrt()
    ordered_a = torch.zeros_like(a)
    ordered_b = torch.zeros_like(b)
    ordered_a[:count] = ((right @ turn_back.T) * roots).T.to(a.dtype)
    ordered_b[:, :count] = ((left @ turn) * roots).to(b.dtype)
    return ordered_a, ordered_b
