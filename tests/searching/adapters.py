"""Tiny super-adapters with something in them, on many architectures, and examples of unequal length."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.groups import build_space, target_modules
from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.blocks import decoder_blocks, linears
from shears.models.sparse_adapter import make_sparse
from tests.tiny import CONFIGS, MORE_CONFIGS, tiny_model, tiny_tokenizer

DEPTHS = ("n_layer", "n_layers", "num_hidden_layers")
RANKS = (6, 4, 2)
PAD = 256


def deep_model(name: str, blocks: int = 4) -> PreTrainedModel:
    """Return a tiny model of so many blocks, where its configuration has a number of them."""
    settings = (CONFIGS | MORE_CONFIGS)[name][1]
    deeper: dict[str, Any] = {depth: blocks for depth in DEPTHS if depth in settings}
    if "layer_types" in settings:
        deeper["layer_types"] = [settings["layer_types"][index % 2] for index in range(blocks)]
    return tiny_model(name, **deeper)


def make_adapter(name: str = "llama", blocks: int = 4, sparse: bool = False) -> ElasticAdapter:
    """Return an elastic adapter in which every second linear of a block is a group of its own."""
    model = deep_model(name, blocks)
    if sparse:
        for linear in linears(model).values():
            weight = linear.get_parameter("weight").data
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    space = build_space(model, _targets(model), RANKS)
    lora = LoraConfig(
        r=6, lora_alpha=12, target_modules=target_modules(model, space), fan_in_fan_out=name in {"gpt2", "gpt_bigcode"}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # PEFT's own start is drawn from the global generator
        peft_model = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(0)
    for layer in peft_model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.lora_B["default"].weight
            weight.data = torch.randn(weight.shape, generator=generator) / 4
    peft_model.eval().requires_grad_(False)
    if sparse:
        make_sparse(peft_model)
    return make_elastic(peft_model, space)


def _targets(model: PreTrainedModel) -> Sequence[str]:
    """Every second linear of the blocks, and none of a mixture's router or experts."""
    blocks = decoder_blocks(model)[1]
    names = sorted({name for block in blocks for name in linears(block)})
    return [name for name in names if not {"experts", "router", "gate"} & {*name.split(".")}][::2]


def make_super_adapter(sparse: bool = False) -> SuperAdapter:
    """Return an elastic adapter with its tokenizer."""
    elastic = make_adapter(sparse=sparse)
    return SuperAdapter(elastic.model, tiny_tokenizer(), elastic, {})


def make_rows(num: int = 12, seed: int = 0) -> list[Tokenized]:
    """Return rows of 6 to 30 tokens, whose last 1 to 5 carry labels."""
    generator, rows = random.Random(seed), []
    for _ in range(num):
        ids = [generator.randrange(256) for _ in range(generator.randint(6, 30))]
        labelled = generator.randint(1, 5)
        rows.append(Tokenized(ids, [IGNORED] * (len(ids) - labelled) + ids[-labelled:]))
    return rows


def walk(space: SearchSpace, steps: int, seed: int = 0) -> list[RankConfig]:
    """Return a walk from the heuristic: mostly to neighbours, now and then to a random configuration."""
    generator = random.Random(seed)
    configs = [space.heuristic()]
    for step in range(steps):
        neighbours = list(space.neighbours(configs[-1]))
        configs.append(space.random(generator) if step % 4 == 3 else generator.choice(neighbours))
    return configs
