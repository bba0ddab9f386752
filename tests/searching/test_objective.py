"""What a rank configuration is worth on a tiny model: the figures of the activated super-adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from shears.adapt.elastic import make_elastic
from shears.adapt.load import SuperAdapter
from shears.adapt.space import SearchSpace
from shears.data.examples import load_examples, tokenize
from shears.evaluation.score import mean_completion_loss
from shears.recipe import SearchConfig
from shears.searching.objective import accuracy_objective, loss_objective
from tests.tiny import tiny_model, tiny_tokenizer

CONFIG: dict[str, Any] = {"data": "arithmetic:validation", "limit": 6, "device": "cpu", "precision": "fp32"}
SPACE = SearchSpace(
    {"first": (4, 2), "second": (6, 4, 2)},
    {
        "first": ["model.layers.0.mlp.up_proj"],
        "second": ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
    },
)


@pytest.fixture
def adapter() -> SuperAdapter:
    targets = [name for names in SPACE.modules.values() for name in names]
    model = get_peft_model(tiny_model(), LoraConfig(r=6, rank_pattern={targets[0]: 4}, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.lora_B["default"].weight
            weight.data = torch.randn(weight.shape, generator=generator)
    model.eval()
    return SuperAdapter(model, tiny_tokenizer(), make_elastic(model, SPACE), {})


def examples_of(adapter: SuperAdapter) -> list[Any]:
    return load_examples("arithmetic:validation", "question", adapter.tokenizer, 6)


def test_the_loss_is_the_mean_completion_loss_of_the_activated_ranks(adapter: SuperAdapter) -> None:
    rows = [tokenize(example, adapter.tokenizer) for example in examples_of(adapter)]
    objective = loss_objective(adapter, rows, SearchConfig(**CONFIG))
    losses = {}
    for name in ("maximal", "heuristic", "minimal"):
        ranks = getattr(SPACE, name)()
        figures = objective(ranks)
        assert adapter.elastic.active == ranks
        adapter.elastic.activate(ranks)
        pad = adapter.tokenizer.pad_token_id
        assert figures["loss"] == mean_completion_loss(adapter.model, rows, pad, 32)
        losses[name] = figures["loss"]
    assert len(set(losses.values())) == 3


def test_parameters_are_rank_times_inputs_and_outputs(adapter: SuperAdapter) -> None:
    rows = [tokenize(example, adapter.tokenizer) for example in examples_of(adapter)[:1]]
    figures = loss_objective(adapter, rows, SearchConfig(**CONFIG))(SPACE.minimal())
    assert figures["parameters"] == 2 * (32 + 48) + 2 * ((32 + 32) + (48 + 32))


@pytest.mark.parametrize("task", ["equation", "number"])
def test_the_accuracy_is_a_share_of_the_examples(adapter: SuperAdapter, task: Any) -> None:
    config = SearchConfig(**CONFIG, objective="accuracy", task=task, max_new_tokens=4)
    figures = accuracy_objective(adapter, examples_of(adapter), config)(SPACE.heuristic())
    assert figures["accuracy"] * 6 == round(figures["accuracy"] * 6)
    assert set(figures) == {"accuracy", "parameters"}


def test_no_gradient_is_kept(adapter: SuperAdapter, tmp_path: Path) -> None:
    rows = [tokenize(example, adapter.tokenizer) for example in examples_of(adapter)[:1]]
    loss_objective(adapter, rows, SearchConfig(**CONFIG))(SPACE.heuristic())
    assert all(parameter.grad is None for parameter in adapter.model.parameters())
