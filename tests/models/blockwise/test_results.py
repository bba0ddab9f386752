"""Repeated forwards of a block give the bits of forwards that compute everything."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shears.models.blockwise.activations import Activations
from shears.models.blockwise.capture import capturing
from shears.models.blockwise.matrices import Matrix, block_matrices
from shears.models.blockwise.results import Results
from shears.models.blockwise.sources import WholeModel
from shears.models.blockwise.walk import BlockRun, Walk, walk_blocks
from tests.tiny import CONFIGS, VOCABULARY, tiny_model

BATCHES = [torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(batch)) for batch in (0, 1)]


def visit_blocks(name: str, visit: Callable[[BlockRun], None], budget: int | None = None) -> None:
    with Activations(budget) as hidden:
        walk_blocks(Walk(WholeModel(tiny_model(name)), BATCHES, hidden), visit)


def halve(run: BlockRun, group: Sequence[Matrix]) -> None:
    for matrix in group:
        matrix.view(run.model).mul_(0.5)


class Inputs(list[tuple[str, Tensor]]):
    """The inputs that matrices got, by name."""

    def receive(self, matrix: Matrix, inputs: Tensor) -> None:
        self.append((matrix.name, inputs))


def plain_inputs(run: BlockRun, group: Sequence[Matrix]) -> Inputs:
    """Return what the matrices get in forwards that read no results."""
    found = Inputs()
    for batch in range(len(run.hidden)):
        with capturing(run.model, run.block, group, found.receive):
            run.forward(batch)
    return found


@pytest.mark.parametrize("budget", [None, 20_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_groups_get_the_inputs_of_whole_forwards_behind_changed_weights(name: str, budget: int | None) -> None:
    def visit(run: BlockRun) -> None:
        for group in run.groups(block_matrices(run.name, run.block)):
            found = Inputs()
            run.measure(group, found.receive)
            expected = plain_inputs(run, group)
            assert Counter(name for name, _ in found) == Counter(name for name, _ in expected)
            for matrix in group:
                pairs = ([inputs for each, inputs in side if each == matrix.name] for side in (found, expected))
                assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True)), matrix.name
            halve(run, group)
        outputs = list(run.outputs())
        assert all(torch.equal(states, run.forward(batch)) for batch, states in enumerate(outputs))

    visit_blocks(name, visit, budget)


class Count(TorchFunctionMode):
    """Counts the products that are computed, by their weight's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in {"linear", "scaled_dot_product_attention"}:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("budget", "linears", "attentions"), [(None, 7, 1), (0, 3 + 4 + 6 + 7, 4)])
def test_every_product_is_computed_once_where_memory_allows(budget: int | None, linears: int, attentions: int) -> None:
    def visit(run: BlockRun) -> None:
        groups = run.groups(block_matrices(run.name, run.block))
        with Count() as computed:
            for group in groups:
                run.measure(group, lambda matrix, inputs: None)
                halve(run, group)
            list(run.outputs())
        assert computed.counts["linear"] == linears * len(BATCHES)
        assert computed.counts["scaled_dot_product_attention"] == attentions * len(BATCHES)

    visit_blocks("llama", visit, budget)


@pytest.mark.parametrize("changed", ["self_attn.q_proj", "input_layernorm"])
def test_results_are_forgotten_when_a_weight_before_them_changes(changed: str) -> None:
    def visit(run: BlockRun) -> None:
        for group in run.groups(block_matrices(run.name, run.block)):
            run.measure(group, lambda matrix, inputs: None)
        with torch.no_grad():
            run.block.get_parameter(f"{changed}.weight").mul_(3)
        assert all(torch.equal(states, run.forward(batch)) for batch, states in enumerate(run.outputs()))

    visit_blocks("llama", visit)


class InPlace(nn.Module):
    """Changes the result of its first product in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs).add_(inputs)  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_result_that_was_changed_in_place_is_computed_again() -> None:
    block, inputs = InPlace(), torch.randn(3, 4)
    results, expected = Results(block), block(inputs)
    for _ in range(3):
        with suppress(KeyError), results.reading(0):
            assert torch.equal(block(inputs), expected)
            raise KeyError  # ends the forward
    with results.spending(0):
        assert torch.equal(block(inputs), expected)
