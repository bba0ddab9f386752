"""Elastic LoRA: ranks beyond the active one are masked by a forward hook on PEFT's own `lora_A`.

Rank r means the first r rows of A and the first r columns of B. Zeroing A's output beyond r equals slicing both, gives
the unused ranks a gradient of exactly zero, and leaves PEFT's layers, files and merging as they are. A mask may be one
for all (R), or one for each row of a batch, so that one forward trains or scores many sub-adapters at once.

B rows of a batch, R ranks; P packed rows of L tokens.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.targets import EXPERTS
from shears.errors import InputError

logger = logging.getLogger(__name__)
MASK = "rank_mask"
# variants that use the weight of lora_A without calling it
PAST_A = ("ArrowLinearVariant", "MontecloraLinearVariant", "QALoraLinearVariant", "VeloraLinearVariant")


def _mask_ranks(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Zero the output features of lora_A beyond the active rank; a function of the module, so deepcopy is safe."""
    mask = module.get_buffer(MASK).to(output.dtype)
    if mask.ndim in (1, output.ndim):
        return output * mask
    rows, length, _ = mask.shape  # and all their tokens in one dimension, as some blocks flatten them (OPT)
    if output.shape[0] % (rows * length):
        raise InputError(
            f"ranks by example need linears that see every token of all {rows} rows, one gets {output.shape[0]} tokens "
            "(an expert?); set sampling to uniform or leave it out of groups"
        )
    return (output.reshape(rows, -1, output.shape[-1]) * mask).view(output.shape)


def lora_layers(model: PeftModel, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the layers with the adapter, by the names of their linears in the base model."""
    for name, layer in model.get_base_model().named_modules():
        if LoraLayer in type(layer).__mro__ and adapter in layer.lora_A:  # no stand-in, which does not call lora_A
            yield name, layer


def _mask_none(linear: nn.Module) -> None:
    """Give lora_A a mask that is one for all rows and lets every rank through."""
    weight = linear.get_parameter("weight")
    linear.register_buffer(MASK, torch.ones(weight.shape[0], device=weight.device), persistent=False)


class ElasticAdapter:
    """The handle on a PEFT model whose LoRA ranks can be switched; `remove` takes the hooks off again."""

    def __init__(self, model: PeftModel, space: SearchSpace, adapter: str = "default") -> None:
        self.model, self.space, self.adapter = model, space, adapter
        layers = dict(lora_layers(model, adapter))
        self._layers = {
            group: [_elastic_layer(layers, name, ranks[0], adapter) for name in space.modules.get(group, ())]
            for group, ranks in space.ranks.items()
        }
        self._routed = [name for name in chain(*space.modules.values()) if EXPERTS in name.split(".")]
        self._variants = sorted({v for layer in self._all_layers() if (v := _variant(layer, adapter)) is not None})
        self._hooks = [self._install(layer) for layer in self._all_layers()]
        self.active: RankConfig | None = self.activate(space.maximal())

    def _all_layers(self) -> list[LoraLayer]:
        return [layer for layers in self._layers.values() for layer in layers]

    def _install(self, layer: LoraLayer) -> torch.utils.hooks.RemovableHandle:
        linear = layer.lora_A[self.adapter]
        if MASK in dict(linear.named_buffers(recurse=False)):
            raise InputError("a model can be elastic only once; call remove() on its ElasticAdapter first")
        _mask_none(linear)
        return linear.register_forward_hook(_mask_ranks)  # type: ignore[no-any-return]

    def activate(self, config: RankConfig) -> RankConfig:
        """Make every following forward use these ranks; InputError if they are not in the space."""
        config = self.space.check(config)
        for group, layers in self._layers.items():
            for layer in layers:
                linear = layer.lora_A[self.adapter]
                if linear.get_buffer(MASK).ndim > 1:
                    _mask_none(linear)
                mask = linear.get_buffer(MASK)  # written in place: compiled code keeps its buffer
                mask.copy_(torch.arange(len(mask), device=mask.device) < config[group])
        self.active = config
        return config

    @property
    def refuses_rows(self) -> str:
        """Why `activate_rows` is not to be had; empty where it is."""
        if self._routed:
            return (
                f"ranks by example need linears that see every token of all rows, {self._routed[0]} is an expert's; "
                "set sampling to uniform or leave it out of groups"
            )
        if self._variants:
            return (
                "ranks by example need plain LoRA, whose A sees the rows of the batch and no others, got "
                f"{self._variants[0]}; activate one configuration for all rows"
            )
        return ""

    def activate_rows(self, configs: Sequence[RankConfig], examples: Int[Tensor, "P L"] | None = None) -> None:
        """Make the next forwards use other ranks for every row of the batch (B configurations).

        With `examples`, rows are packed, and each token has the ranks of its example, an index into the configurations
        (whichever, where there is none). InputError if they are not in the space, for variants of LoRA (DoRA's A also
        gets an identity), or where a linear sees only the tokens that a router sends it.
        """
        if self.refuses_rows:
            raise InputError(self.refuses_rows)
        checked = [self.space.check(config) for config in configs]
        for group, layers in self._layers.items():
            ranks = torch.tensor([config[group] for config in checked])
            ranks = (ranks[:, None] if examples is None else ranks[examples.cpu()])[..., None]
            masks: dict[tuple[int, torch.device], Tensor] = {}  # the linears of a group share theirs
            for layer in layers:
                linear = layer.lora_A[self.adapter]
                size, device = linear.weight.shape[0], linear.weight.device
                if (size, device) not in masks:
                    masks[size, device] = (torch.arange(size) < ranks).float().to(device)
                linear.register_buffer(MASK, masks[size, device], persistent=False)
        self.active = None

    def num_parameters(self, config: RankConfig) -> int:
        """Return the parameters of the sub-adapter: rank * (in_features + out_features) over its linears."""
        return sum(
            config[group] * (layer.in_features + layer.out_features)
            for group, layers in self._layers.items()
            for layer in layers
        )

    def remove(self) -> None:
        """Take the hooks and masks off, if they are on; the model is a plain PEFT model at its largest ranks again."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._all_layers():
            layer.lora_A[self.adapter]._buffers.pop(MASK, None)
            layer.lora_A[self.adapter]._non_persistent_buffers_set.discard(MASK)
        self._hooks = []


def _variant(layer: LoraLayer, adapter: str) -> str | None:
    """Return the name that PEFT gives to its variant of LoRA, None for plain LoRA."""
    variant = layer.lora_variant.get(adapter)
    return None if variant is None else type(variant).__name__


def _elastic_layer(layers: dict[str, LoraLayer], name: str, max_rank: int, adapter: str) -> LoraLayer:
    layer = layers.get(name)
    if layer is None:
        raise InputError(f"every linear of the search space must carry the adapter {adapter!r}; {name} does not")
    if layer.use_rslora.get(adapter):
        raise InputError("rank-stabilised LoRA scales every rank otherwise and cannot be elastic; set use_rslora=False")
    if (variant := _variant(layer, adapter)) in PAST_A:
        raise InputError(f"ranks are masked behind lora_A, which {variant} of {name} does not call; take plain LoRA")
    if layer.lora_A[adapter].weight.shape[0] < max_rank:
        rank = layer.lora_A[adapter].weight.shape[0]
        raise InputError(f"the adapter of {name} must have the largest rank of its group ({max_rank}), got {rank}")
    return layer


def make_elastic(model: PeftModel, space: SearchSpace, adapter: str = "default") -> ElasticAdapter:
    """Make a PEFT model's LoRA adapter elastic; the largest ranks are active at first."""
    return ElasticAdapter(model, space, adapter)


@torch.no_grad()
def reorder(model: PeftModel, adapter: str = "default") -> None:
    """Put the singular value decomposition of every B A in the place of B and A, in place; the product stays.

    Of all adapters of a smaller rank, the first r components then have the nearest product (Eckart and Young). Both
    vectors of a component are equally long.
    """
    for _, layer in lora_layers(model, adapter):
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        ordered_a, ordered_b = by_size(a, b)
        a.copy_(ordered_a)
        b.copy_(ordered_b)


def by_size(a: Float[Tensor, "R I"], b: Float[Tensor, "O R"]) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
    """Return A and B with the same product, its singular values falling, each value's root in both.

    Computed in float64 from the R x R core between two orthonormal bases; where R exceeds O or I, the rest is zero.
    """
    left, left_core = torch.linalg.qr(b.double())
    right, right_core = torch.linalg.qr(a.double().T)
    turn, values, turn_back = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    count, roots = len(values), values.sqrt()
    ordered_a, ordered_b = torch.zeros_like(a), torch.zeros_like(b)
    ordered_a[:count] = ((right @ turn_back.T) * roots).T.to(a.dtype)
    ordered_b[:, :count] = ((left @ turn) * roots).to(b.dtype)
    return ordered_a, ordered_b
