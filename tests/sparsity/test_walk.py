"""The walk feeds every block what an ordinary forward feeds it, and leaves no trace."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from shears.errors import InputError
from shears.models import decoder_blocks, linears
from shears.sparsity.walk import PROBE_TOKENS, walk_blocks
from tests.tiny import CONFIGS, VOCABULARY, tiny_model

BATCHES = [torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(batch)) for batch in (0, 1)]


def nothing(name: str, block: nn.Module, norms: Mapping[str, Tensor]) -> None:
    pass


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
    walked = block_inputs(model, lambda: walk_blocks(model, BATCHES, {}, nothing))
    for index, expected in enumerate(ordinary[1:], start=1):
        replayed = walked[index][-len(BATCHES) :]
        assert all(torch.equal(*pair) for pair in zip(replayed, expected, strict=True)), f"block {index}"


def test_a_block_is_measured_behind_the_changed_blocks_before_it() -> None:
    def norms_when(change: bool) -> dict[str, Tensor]:
        model, found = tiny_model(), dict[str, Tensor]()

        def visit(name: str, block: nn.Module, norms: Mapping[str, Tensor]) -> None:
            found.update(norms)
            if change:
                for linear in linears(block).values():
                    linear.get_parameter("weight").zero_()

        walk_blocks(model, BATCHES, linears(model), visit)
        return found

    before, after = norms_when(False), norms_when(True)
    first, second = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    assert torch.equal(before[first], after[first])
    assert not torch.allclose(before[second], after[second])
    assert not any("lm_head" in name for name in before)


def test_the_head_is_computed_on_the_probe_only() -> None:
    model, lengths = tiny_model(), list[int]()
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    walk_blocks(model, BATCHES, {}, nothing)
    handle.remove()
    assert lengths == [PROBE_TOKENS]


def test_the_model_is_restored_after_an_error() -> None:
    model = tiny_model()
    model.train()
    blocks = decoder_blocks(model)[1]
    wrapper = blocks[0].forward
    blocks[0].forward = wrapper  # as tools that move a model between devices do

    def fail(name: str, block: nn.Module, norms: Mapping[str, Tensor]) -> None:
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        walk_blocks(model, BATCHES, linears(model), fail)
    assert [block.__dict__.get("forward") for block in blocks] == [wrapper, None]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_while_recording_leaves_no_shadow() -> None:
    model = tiny_model()
    bad = torch.full((1, 4), VOCABULARY + 5)
    with pytest.raises(IndexError):
        walk_blocks(model, [BATCHES[0], bad], {}, nothing)
    assert not any("forward" in block.__dict__ for block in decoder_blocks(model)[1])


def test_hidden_states_that_are_not_finite_name_the_block() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.input_layernorm.weight").fill_(torch.inf)
    with pytest.raises(InputError, match=r"after model\.layers\.0 are not"):
        walk_blocks(model, BATCHES, {}, nothing)


def test_a_block_that_is_skipped_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 1  # the forward stops before the second block
    with pytest.raises(InputError, match="must run once in a forward"):
        walk_blocks(model, BATCHES, {}, nothing)
