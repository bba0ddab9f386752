"""Elastic LoRA: ranks beyond the active one are masked by a forward hook on PEFT's own `lora_A`.

Rank r means the first r rows of A and the first r columns of B. Zeroing A's output beyond r equals
slicing both, gives the unused ranks a gradient of exactly zero, and does not change PEFT's layers.

A nested adapter computes scaling * B D A while it trains: D, a fixed diagonal, weighs each
component by the share of the allowed ranks that contain it, and saving moves D into A and B.
Smaller ranks are multiplied by the space's factors. The masks hold these numbers.

R ranks, O output and I input features of a linear.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.fields import TemplateName
from shears.config.train_options import SamplingName, TrainConfig
from shears.errors import InputError
from shears.models.sparse_adapter import MASK
from shears.records.paths import A, linear_of

FIELDS = TrainConfig.model_fields


# no closure, so that deepcopy is safe
def _mask_ranks(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output * module.get_buffer(MASK).to(output.dtype)


def lora_layers(model: PeftModel, adapter: str) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            yield name, layer


class ElasticAdapter:
    """The handle on a PEFT model whose LoRA ranks can be switched; `remove` undoes it.

    `nested` trains all allowed ranks at once: it weighs the components by the diagonal D. An
    adapter whose B is not zero at the start is divided by D first, so that its product stays; its
    components are parts of a whole, not estimates of one update: smaller ranks have no factors.
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
        self._all = [layer for layers in self._layers.values() for layer in layers]
        self._hooks = []
        for layer in self._all:
            linear = layer.lora_A[adapter]
            if MASK in dict(linear.named_buffers(recurse=False)):
                raise InputError("a model can be elastic only once; call remove() on its ElasticAdapter first")
            weight = linear.weight
            linear.register_buffer(MASK, torch.ones(len(weight), device=weight.device), persistent=False)
            self._hooks.append(linear.register_forward_hook(_mask_ranks))
        if nested and any(layer.lora_B[adapter].weight.any() for layer in self._all):
            self._divide_by_diagonal()
        self.active = RankConfig({})
        self.activate(space.maximal())

    def activate(self, config: RankConfig) -> RankConfig:
        """Use these ranks in every following forward; InputError if they are not in the space."""
        config = self.space.check(config)
        for group, layers in self._layers.items():
            rank = config[group]
            for layer in layers if self.active.get(group) != rank else ():
                mask = layer.lora_A[self.adapter].get_buffer(MASK)
                mask.copy_(self._diagonal(group, len(mask), mask.device)).mul_(self.space.factor(group, rank))
                mask[rank:] = 0  # all in place, because compiled code keeps the mask
        self.active = config
        return config

    @contextmanager
    def at(self, config: RankConfig) -> Iterator[None]:
        before = self.active
        self.activate(config)
        try:
            yield
        finally:
            self.activate(before)

    def _diagonal(self, group: str, size: int, device: torch.device | None = None) -> Float[Tensor, " R"]:
        """Return D of a group (MatryoshkaLoRA, arXiv 2605.07850, Algorithm 1); ones if not nested.

        A component weighs the share of the allowed ranks that contain it; one in none weighs 1.
        """
        if not self.nested:
            return torch.ones(size, device=device)
        ranks = self.space.ranks[group]
        shares = [sum(rank > index for rank in ranks) / len(ranks) or 1.0 for index in range(size)]
        return torch.tensor(shares, device=device)

    @torch.no_grad()
    def _divide_by_diagonal(self) -> None:
        """Divide A and B by the roots of D, in place: every cut of B D A is then that of B A."""
        for group, layers in self._layers.items():
            for layer in layers:
                a = layer.lora_A[self.adapter].weight
                factor = (1 / self._diagonal(group, len(a)).sqrt()).to(a)
                a.mul_(factor[:, None])
                layer.lora_B[self.adapter].weight.mul_(factor)
        self.space = replace(self.space, factors={})

    def tensors(self) -> dict[str, Tensor]:
        """Return plain LoRA of the same outputs, by PEFT's names: A and B times the roots of D."""
        state = get_peft_model_state_dict(self.model, adapter_name=self.adapter, save_embedding_layers=False)
        groups = {name: group for group, names in self.space.modules.items() for name in names}
        plain: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        for name, tensor in plain.items():
            if self.nested and (group := groups.get(linear_of(name))):
                is_a = name.endswith(A)
                roots = self._diagonal(group, tensor.shape[0 if is_a else 1]).sqrt().to(tensor)
                plain[name] = tensor * (roots[:, None] if is_a else roots)
        return plain

    def num_parameters(self, config: RankConfig) -> int:
        return sum(
            config[group] * (layer.in_features + layer.out_features)
            for group, layers in self._layers.items()
            for layer in layers
        )

    def save(
        self,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        data: str | None = None,
        template: TemplateName = FIELDS["template"].default,
        max_length: int = FIELDS["max_length"].default,
    ) -> Path:
        """Write the adapter to `folder` as a super-adapter to search and export; return the folder.

        For a training loop of your own, such as a Trainer with an `NLSCallback`. `base` is the
        model's folder or hub id, by default the name that it was loaded by. `data` are the training
        examples: they are recorded with their hash. Of several processes the first one writes.
        InputError if the folder is not empty, if the adapter is not plain LoRA on the space's
        linears, or if the frozen weights in memory are not those of `base`.
        """
        from shears.adapt.super_adapter import save_own_loop

        about = {"data": data, "template": template, "max_length": max_length}
        return save_own_loop(self, Path(folder), base, about)

    def remove(self) -> None:
        """Remove hooks and masks: the model is then a plain PEFT model at its largest ranks."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._all:
            layer.lora_A[self.adapter]._buffers.pop(MASK, None)


def _elastic_layer(layers: dict[str, LoraLayer], name: str, rank: int, adapter: str) -> LoraLayer:
    layer = layers.get(name)
    variant = layer is None or layer.use_rslora.get(adapter) or adapter in layer.lora_variant
    if layer is None or variant or len(layer.lora_A[adapter].weight) < rank:
        plain = f"as plain LoRA of rank {rank}, without variants such as use_rslora"
        rule = f"every linear of the search space must have the adapter {adapter!r} {plain}"
        raise InputError(f"{rule}, {name} does not; change the groups or the LoRA configuration")
    return layer


def ranks_of_step(sampling: SamplingName, space: SearchSpace, seed: int, step: int) -> RankConfig:
    """Return a step's ranks: drawn if uniform (Shears, section 3.2), the largest if nested."""
    return space.random(random.Random(f"ranks/{seed}/{step}")) if sampling == "uniform" else space.maximal()


class NLSCallback(TrainerCallback):
    """Neural Low-rank adapter Search in any `transformers.Trainer`: chooses each step's ranks."""

    def __init__(self, elastic: ElasticAdapter, seed: int = 0) -> None:
        self.elastic = elastic
        self.seed = seed
        self.sampling: SamplingName = "nested" if elastic.nested else "uniform"

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self.elastic.activate(ranks_of_step(self.sampling, self.elastic.space, self.seed, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if control.should_evaluate:  # not of the last draw
            self.elastic.activate(self.elastic.space.heuristic())

    on_epoch_end = on_step_end

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.elastic.activate(self.elastic.space.maximal())
