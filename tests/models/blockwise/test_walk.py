"""The walk feeds every block what an ordinary forward feeds it, and leaves no trace."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears
from shears.models.blockwise.activations import Activations
from shears.models.blockwise.capture import InputNorms
from shears.models.blockwise.matrices import Matrix, block_matrices
from shears.models.blockwise.sources import WholeModel
from shears.models.blockwise.walk import BlockRun, Visit, Walk, walk_blocks
from tests.tiny import CONFIGS, VOCABULARY, tiny_model

BATCHES = [torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(batch)) for batch in (0, 1)]


def nothing(run: BlockRun) -> None:
    pass


def run_once(run: BlockRun) -> None:
    list(run.outputs())


def walk(model: PreTrainedModel, visit: Visit = nothing, batches: list[Tensor] = BATCHES) -> None:
    walk_blocks(Walk(WholeModel(model), batches), visit)


def block_inputs(model: nn.Module, run: object) -> list[list[Tensor]]:
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
    run()  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_get_what_an_ordinary_forward_gives_them(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        ordinary = block_inputs(model, lambda: [model(batch, use_cache=False) for batch in BATCHES])
    walked = block_inputs(model, lambda: walk(model, run_once))
    for index, expected in enumerate(ordinary[1:], start=1):
        replayed = walked[index][-len(BATCHES) :]
        assert all(torch.equal(*pair) for pair in zip(replayed, expected, strict=True)), f"block {index}"


def test_a_block_is_measured_behind_the_changed_blocks_before_it() -> None:
    def norms_when(change: bool) -> dict[str, Tensor | None]:
        model, found = tiny_model(), dict[str, Tensor | None]()

        def visit(run: BlockRun) -> None:
            norms, matrices = InputNorms(), block_matrices(run.name, run.block)
            run.measure(matrices, norms.receive)
            found.update({matrix.name: norms.of(matrix) for matrix in matrices})
            if change:
                for linear in linears(run.block).values():
                    linear.get_parameter("weight").zero_()

        walk(model, visit)
        return found

    before, after = norms_when(False), norms_when(True)
    first, second = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    assert torch.equal(before[first], after[first])  # type: ignore[arg-type]
    assert not torch.allclose(before[second], after[second])  # type: ignore[arg-type]
    assert not any("lm_head" in name for name in before)


def test_the_head_is_not_computed() -> None:
    model, calls = tiny_model(), list[int]()
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: calls.append(1))
    walk(model)
    handle.remove()
    assert not calls


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_forwards_stop_after_the_last_measured_weight(name: str) -> None:
    model, seen = tiny_model(name), list[str]()

    def visit(run: BlockRun) -> None:
        ended = list[int]()
        handle = run.block.register_forward_hook(lambda *_: ended.append(1))
        first = block_matrices(run.name, run.block)[:1]
        run.measure(first, lambda matrix, inputs: seen.append(matrix.name))
        handle.remove()
        assert len(ended) == 1  # the first batch, which shows the order

    walk(model, visit)
    assert len(seen) == len(BATCHES) * len(set(seen)) == 2 * len(BATCHES)


def test_groups_come_in_the_order_of_the_calls() -> None:
    found: list[list[str]] = []

    def visit(run: BlockRun) -> None:
        matrices = block_matrices(run.name, run.block)
        found.append([".".join(sorted(map(short, group))) for group in run.groups(list(reversed(matrices)))])

    def short(matrix: Matrix) -> str:
        return matrix.name.rpartition(".")[2]

    walk(tiny_model("llama"), visit)
    assert found == [["k_proj.q_proj.v_proj", "o_proj", "gate_proj.up_proj", "down_proj"]] * 2


def test_experts_of_a_stack_are_one_group() -> None:
    groups: list[list[Matrix]] = []
    walk(tiny_model("mixtral"), lambda run: groups.extend(run.groups(block_matrices(run.name, run.block))))
    stacks = [group for group in groups if group[0].index is not None]
    assert [len(group) for group in stacks] == [len({matrix.index for matrix in group}) for group in stacks]
    assert [len({matrix.parameter for matrix in group}) for group in stacks] == [1] * 4


@pytest.mark.parametrize("budget", [0, 40_000, None])
def test_hidden_states_on_the_disk_change_nothing(budget: int | None, tmp_path: Path) -> None:
    model, found = tiny_model("gemma2"), list[Tensor]()
    with torch.no_grad():
        expected = [model.model(batch, use_cache=False).last_hidden_state for batch in BATCHES]
    with Activations(budget, tmp_path) as hidden:
        walked = Walk(WholeModel(model), BATCHES, hidden)
        walk_blocks(walked, lambda run: found.extend(run.outputs()) if run.name.endswith(".2") else None)
        assert bool(hidden.num_spilled) == (budget == 0) or budget == 40_000
    with torch.no_grad():
        assert all(torch.equal(model.model.norm(states), known) for states, known in zip(found, expected, strict=True))
    assert not list(tmp_path.iterdir())


def test_equal_arguments_of_batches_are_kept_once() -> None:
    model = tiny_model("gemma2")
    walked = Walk(WholeModel(model), BATCHES)
    with walked.opened(0) as run:
        first, second = (run.calls.kwargs[batch]["position_embeddings"] for batch in (0, 1))
    assert all(one is other for one, other in zip(first, second, strict=True))


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


def test_an_error_while_recording_leaves_no_shadow() -> None:
    model = tiny_model()
    bad = torch.full((1, 4), VOCABULARY + 5)
    with pytest.raises(IndexError):
        walk(model, nothing, [BATCHES[0], bad])
    assert not any("forward" in block.__dict__ for block in decoder_blocks(model)[1])


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
