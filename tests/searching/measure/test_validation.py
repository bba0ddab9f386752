"""What a search measures on a tiny model: the figures of the activated super-adapter, as other code computes them."""

from typing import Any

import pytest

from shears.adapt.load import SuperAdapter
from shears.config import EvaluateConfig, SearchConfig
from shears.data.examples import Example, load_examples, tokenize_all
from shears.evaluation.tasks.registry import evaluate_examples
from shears.searching.measure.validation import ValidationEvaluators, open_validation
from shears.searching.tied import TiedSpace, tie_layers
from tests.oracles.losses import mean_completion_loss
from tests.searching.adapters import make_super_adapter

CONFIG: dict[str, Any] = {
    "data": "arithmetic:validation", "limit": 24, "device": "cpu", "precision": "fp32", "max_new_tokens": 4
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter() -> SuperAdapter:
    made = make_super_adapter()
    made.record.update(template="question", config={"data": "arithmetic:train", "max_length": 512})
    return made


def opened(adapter: SuperAdapter, tied: TiedSpace | None = None, **config: Any) -> ValidationEvaluators:
    return open_validation(adapter, SearchConfig(**{**CONFIG, **config}), tied or tie_layers(adapter.elastic.space, 1))


def examples_of(adapter: SuperAdapter) -> list[Example]:
    return load_examples("arithmetic:validation", "question", adapter.tokenizer, 24)


def test_the_loss_is_the_mean_completion_loss_of_the_activated_ranks(adapter: SuperAdapter) -> None:
    """Without a cache and with one."""
    rows, space = tokenize_all(examples_of(adapter), adapter.tokenizer, 512), adapter.elastic.space
    evaluators = [opened(adapter, cache_budget=budget).evaluator for budget in ("0", "2GB")]
    losses = set[float]()
    for ranks in (space.heuristic(), *list(space.neighbours(space.heuristic()))[:4], space.minimal()):
        adapter.elastic.activate(ranks)
        expected = mean_completion_loss(adapter.model, rows, adapter.tokenizer.pad_token_id, 32)
        losses.add(expected)
        for evaluator in evaluators:
            figures = evaluator(ranks)
            evaluator.anchor(space.heuristic())
            assert figures["loss"] == pytest.approx(expected, rel=1e-5)  # packed rows round otherwise than padded ones
            assert figures["parameters"] == adapter.elastic.num_parameters(ranks)
    assert len(losses) == 6


def test_losses_are_measured_in_fp32_unless_another_precision_is_asked_for(adapter: SuperAdapter) -> None:
    ranks = adapter.elastic.space.heuristic()
    losses = {each: opened(adapter, precision=each).evaluator(ranks)["loss"] for each in ("auto", "fp32", "bf16")}
    assert losses["auto"] == losses["fp32"] != losses["bf16"]


@pytest.mark.parametrize("task", ["equation", "number"])
def test_the_accuracy_is_that_of_the_task_on_the_activated_ranks(adapter: SuperAdapter, task: Any) -> None:
    space = adapter.elastic.space
    evaluator = opened(adapter, objective="accuracy", task=task, backend="transformers").evaluator
    scoring = EvaluateConfig(task=task, data="unused", max_new_tokens=4)
    for ranks in (space.maximal(), space.heuristic(), space.minimal()):
        figures = evaluator(ranks)
        adapter.elastic.activate(ranks)
        expected = evaluate_examples(adapter.model, adapter.tokenizer, examples_of(adapter), scoring)
        sizes = {"parameters": adapter.elastic.num_parameters(ranks)}
        assert figures == {"accuracy": expected.value, "cut": expected.details["cut"], **sizes}


def test_no_gradient_is_kept(adapter: SuperAdapter) -> None:
    opened(adapter).evaluator(adapter.elastic.space.heuristic())
    assert all(parameter.grad is None for parameter in adapter.model.parameters())


def test_configurations_of_tied_layers_are_measured_as_those_they_stand_for(adapter: SuperAdapter) -> None:
    tied = tie_layers(adapter.elastic.space, 2)
    for ranks in (tied.space.minimal(), tied.space.heuristic()):
        expected = opened(adapter).evaluator(tied.expand(ranks))
        assert opened(adapter, tied).evaluator(ranks) == expected


def test_the_fingerprint_is_of_what_is_measured(adapter: SuperAdapter) -> None:
    assert opened(adapter).fingerprint != opened(adapter, limit=23).fingerprint
    assert opened(adapter).fingerprint == opened(adapter, cache_budget="0").fingerprint
