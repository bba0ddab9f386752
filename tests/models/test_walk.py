"""The walk feeds every block what an ordinary forward feeds it, and leaves no trace."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.models.activations import Activations
from shears.models.blocks import Matrix, block_matrices, decoder_blocks
from shears.models.capture import capturing
from shears.models.sources import BlockSource
from shears.models.walk import BlockRun, Walk
from tests.tiny import CONFIGS, VOCABULARY, tiny_model

BATCHES = [torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(batch)) for batch in (0, 1)]


def walk(
    model: PreTrainedModel,
    visit: Callable[[BlockRun], object] = id,
    batches: list[Tensor] = BATCHES,
    budget: int | None = None,
) -> None:
    with torch.no_grad(), Activations(budget) as hidden:
        walked = Walk(BlockSource(model), batches, hidden)
        for index in range(len(walked)):
            with walked.advancing(index) as run:
                visit(run)


def block_inputs(model: nn.Module, run: Callable[[], object]) -> list[list[Tensor]]:
    """Return the hidden states every block is really computed on while `run` runs, a list per block."""
    seen: list[list[Tensor]] = []
    handles = []
    for block in decoder_blocks(model)[1]:
        seen.append([])
        handles.append(
            block.register_forward_pre_hook(
                lambda _, args, kwargs, at=seen[-1]: at.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        )
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_get_what_an_ordinary_forward_gives_them(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        ordinary = block_inputs(model, lambda: [model(batch, use_cache=False) for batch in BATCHES])
    walked = block_inputs(model, lambda: walk(model, lambda run: list(run.outputs())))
    for index, expected in enumerate(ordinary[1:], start=1):
        replayed = walked[index][-len(BATCHES) :]
        assert all(torch.equal(*pair) for pair in zip(replayed, expected, strict=True)), f"block {index}"


def halve(run: BlockRun, group: Sequence[Matrix]) -> None:
    for matrix in group:
        matrix.view(run.model).mul_(0.5)


Seen = list[tuple[str, Tensor]]


def plain_inputs(run: BlockRun, group: Sequence[Matrix]) -> Seen:
    """Return what the matrices get in forwards that read no results."""
    found: Seen = []
    for batch in range(len(run.hidden)):
        with capturing(run.model, run.block, group, lambda matrix, inputs: found.append((matrix.name, inputs))):
            run.forward(batch)
    return found


@pytest.mark.parametrize("budget", [None, 20_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_groups_get_the_inputs_of_whole_forwards_after_changed_weights(name: str, budget: int | None) -> None:
    def visit(run: BlockRun) -> None:
        for group in run.groups(block_matrices(run.name, run.block)):
            found: Seen = []
            run.measure(group, lambda matrix, inputs, to=found: to.append((matrix.name, inputs)))  # type: ignore[misc]
            expected = plain_inputs(run, group)
            assert Counter(name for name, _ in found) == Counter(name for name, _ in expected)
            for matrix in group:
                pairs = ([inputs for each, inputs in side if each == matrix.name] for side in (found, expected))
                assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True)), matrix.name
            halve(run, group)
        outputs = list(run.outputs())
        assert all(torch.equal(states, run.forward(batch)) for batch, states in enumerate(outputs))

    walk(tiny_model(name), visit, budget=budget)


class Count(TorchFunctionMode):
    """Counts the products that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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

    walk(tiny_model("llama"), visit, budget=budget)


@pytest.mark.parametrize("changed", ["self_attn.q_proj", "input_layernorm"])
def test_results_are_forgotten_when_a_weight_before_them_changes(changed: str) -> None:
    def visit(run: BlockRun) -> None:
        for group in run.groups(block_matrices(run.name, run.block)):
            run.measure(group, lambda matrix, inputs: None)
        run.block.get_parameter(f"{changed}.weight").mul_(3)
        assert all(torch.equal(states, run.forward(batch)) for batch, states in enumerate(run.outputs()))

    walk(tiny_model("llama"), visit)


def test_the_model_is_restored_after_an_error() -> None:
    model = tiny_model()
    model.train()
    blocks = decoder_blocks(model)[1]
    wrapper = blocks[0].forward
    blocks[0].forward = wrapper  # as tools that move a model between devices do

    def fail(run: BlockRun) -> None:
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        walk(model, fail)
    assert [block.__dict__.get("forward") for block in blocks] == [wrapper, None]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(IndexError):
        walk(model, batches=[BATCHES[0], torch.full((1, 4), VOCABULARY + 5)])
    assert [block.__dict__.get("forward") for block in blocks] == [wrapper, None]


def test_hidden_states_that_are_not_finite_name_the_block() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.input_layernorm.weight").fill_(torch.inf)
    with pytest.raises(InputError, match=r"after model\.layers\.0 are not"):
        walk(model)


def test_a_block_that_is_skipped_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 1  # the forward stops before the second block
    with pytest.raises(InputError, match="must run once in a forward"):
        walk(model)
