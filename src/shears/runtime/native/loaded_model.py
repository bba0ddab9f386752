"""A model of transformers in memory as a source of the native decoder."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from shears.checkpoints.packed_layout import NumberFormat, PackedMatrix, is_masked, kept, num_stored, pack
from shears.models.blocks import LoraUpdate
from shears.models.sparse_adapter import SparseLinear
from shears.records.paths import ADDED
from shears.runtime.native.architectures import NotCoveredError
from shears.runtime.native.dense_rows import DenseRows
from shears.runtime.native.model_source import LINEAR, ModelSource


def source_of_model(
    model: nn.Module, values: NumberFormat | None = None, *, sparse: bool = True, consume: bool = False
) -> ModelSource:
    """Return the source of a transformers model in memory, or of PEFT's LoRA around one.

    `values` is the number format of the blocks' linears, by default the model's (fp32 for fp16,
    whose numbers bf16 does not hold); `sparse` packs those that masks make smaller. A linear is
    packed when it is read; if `consume`, `release` then takes its weight from the model. A masked
    adapter (`make_sparse`) is added to the weight. NotCoveredError for weights that are no floats,
    and for an adapter that is more than scaling B A.
    """
    wrapped: Any = model
    base: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    updates = updates_of(model)
    tensors = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in base.state_dict().items()
        if ADDED not in name
    }
    in_blocks = [name for name in tensors if ".layers." in name and LINEAR.search(name)]
    names = [name.removesuffix(".weight") for name in in_blocks if tensors[name].ndim == 2]
    if not names or not all(tensors[name].is_floating_point() for name in in_blocks):
        raise NotCoveredError(
            "the native decoder covers linears of floats in its blocks, this model has none or others"
        )
    form: NumberFormat = values or ("bf16" if tensors[f"{names[0]}.weight"].dtype == torch.bfloat16 else "fp32")
    for name in names:
        del tensors[f"{name}.weight"]
    layers: dict[str, Any] = {name: base.get_submodule(name) for name in names}

    def release(name: str) -> None:
        weight = getattr(layers[name], "base_layer", layers[name]).weight
        weight.data = weight.data.new_empty(0)

    linears = _LayerWeights(layers, form, sparse)
    source = ModelSource(base.config, linears, tensors, updates, form)
    return replace(source, release=release) if consume else source


def updates_of(model: nn.Module) -> dict[str, LoraUpdate]:
    """Return a model's adapter by linear, not copied; masked products are parts of the weights.

    NotCoveredError for an adapter that is more than scaling B A.
    """
    wrapped: Any = model
    base: nn.Module = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    return {name: _update(name, module) for name, module in adapted.items() if not isinstance(module, SparseLinear)}


class _LayerWeights(Mapping[str, PackedMatrix | DenseRows]):
    """The weights of a model's linears by name, packed when they are read."""

    def __init__(self, layers: Mapping[str, nn.Module], values: NumberFormat, sparse: bool) -> None:
        self._layers = layers
        self._values = values
        self._sparse = sparse

    def __getitem__(self, name: str) -> PackedMatrix | DenseRows:
        layer: Any = self._layers[name]
        weight = getattr(layer, "base_layer", layer).weight
        whole = layer.whole_weight() if isinstance(layer, SparseLinear) else weight.detach()
        rows, cols = whole.shape
        if self._sparse and is_masked(rows, cols, num_stored(kept(whole), self._values), self._values):
            return pack(whole, self._values)
        return DenseRows(whole).as_values(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._layers  # Mapping's own would pack the weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _update(name: str, module: Any) -> LoraUpdate:
    adapters = list(module.lora_A)
    if len(adapters) != 1 or adapters[0] in module.lora_variant or module.lora_bias.get(adapters[0]):
        raise NotCoveredError(f"the native decoder covers one plain LoRA, {name} has another adapter; merge it first")
    return lora_update(module, adapters[0])


def lora_update(layer: Any, adapter: str) -> LoraUpdate:
    """Return an adapter of PEFT's LoRA layer, its factors not copied."""
    a = layer.lora_A[adapter].weight.detach()
    b = layer.lora_B[adapter].weight.detach()
    return LoraUpdate(a, b, float(layer.scaling[adapter]))
