"""A forward that begins at a later block: the same bits from fewer blocks; models that cannot are refused."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.evaluation.scoring.prefix import PrefixError, first_blocks, kept_blocks, open_prefix
from tests.searching.adapters import deep_model

IDS = torch.arange(24).view(2, 12) * 7 % 256
ARCHITECTURES = ["llama", "mistral", "gemma2", "qwen3", "gpt2", "gpt_neox", "opt", "bloom", "mamba", "qwen3_next"]


def forwards(model: PreTrainedModel) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    def forward(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    return lambda: forward(IDS), lambda: forward(IDS.flip(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_from_every_block_on_the_logits_have_the_same_bits_and_the_blocks_below_do_not_run(name: str) -> None:
    model = deep_model(name)
    first, second = forwards(model)
    prefix = open_prefix(model, first, second)
    expected, blocks = first(), len(prefix)
    with prefix.starting(0, {}, range(blocks)) as inputs:
        first()
    assert list(inputs) == list(range(blocks))
    for start in range(1, blocks):
        second()
        before = prefix.num_runs
        with prefix.starting(start, {start: inputs[start]}, [blocks - 1]) as seen:
            assert torch.equal(first(), expected)
        assert prefix.num_runs - before == blocks - start
        assert torch.equal(seen[blocks - 1], inputs[blocks - 1])


@torch.no_grad()
def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = deep_model("llama")
    first, second = forwards(model)
    prefix, expected = open_prefix(model, first, second), first()
    blocks = model.model.layers
    own = blocks[0].forward
    wrapper = blocks[0].forward = partial(own)  # as accelerate and others wrap it
    with pytest.raises(RuntimeError), prefix.starting(2, {2: torch.zeros(1, 1, 1)}):
        first()
    assert blocks[0].forward is wrapper
    assert "forward" not in blocks[1].__dict__
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in blocks)
    assert torch.equal(first(), expected)


class _Shared(nn.Module):
    """Blocks, one of which keeps a state for the next beside the hidden states."""

    def __init__(self, block: nn.Module, left: dict[str, Tensor], leaves: bool) -> None:
        super().__init__()
        self.block, self._left, self._leaves = block, left, leaves

    def forward(self, hidden: Tensor, **kwargs: Any) -> Any:
        if self._leaves:
            self._left["states"] = hidden
        return self.block(hidden + self._left["states"], **kwargs)


def test_blocks_that_keep_a_state_for_later_ones_are_refused() -> None:
    model, left = deep_model("llama"), dict[str, Tensor]()
    layers = model.model.layers
    model.model.layers = nn.ModuleList(_Shared(block, left, index == 0) for index, block in enumerate(layers))
    with pytest.raises(PrefixError, match="block 3"):
        open_prefix(model, *forwards(model))


class _Twice(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.block(self.block(*args, **kwargs), **kwargs)


def test_blocks_that_run_twice_or_change_their_inputs_are_refused() -> None:
    model = deep_model("llama")
    shared = model.model.layers[0]
    model.model.layers[2] = shared
    with pytest.raises(PrefixError):
        open_prefix(model, *forwards(model))
    model = deep_model("llama")
    layers = model.model.layers
    layers[2].register_forward_pre_hook(lambda _, args: (args[0].mul_(1.5), *args[1:]))
    with pytest.raises(PrefixError):
        open_prefix(model, *forwards(model))


def test_a_block_may_run_a_part_several_times() -> None:
    model = deep_model("llama")
    model.model.layers[1] = _Twice(model.model.layers[1])
    assert len(open_prefix(model, *forwards(model))) == 4


@pytest.mark.parametrize("num_blocks", [2, 5, 30])
def test_kept_blocks_are_as_many_as_fit_and_spread_evenly(num_blocks: int) -> None:
    for count in range(num_blocks + 3):
        kept = kept_blocks(num_blocks, 10, 10 * count + 9)
        assert len(kept) == min(count, num_blocks - 1)
        edges = [0, *kept, num_blocks]
        gaps = [high - low for low, high in pairwise(edges)]
        assert all(gap > 0 for gap in gaps)
        assert max(gaps) - min(gaps) <= 1


def test_a_group_belongs_to_its_first_block_or_to_block_0_outside_the_blocks() -> None:
    modules = {"one": ["model.layers.10.q", "model.layers.2.q"], "head": ["lm_head"], "other": ["xmodel.layers.3.q"]}
    assert first_blocks(modules, "model.layers") == {"one": 2, "head": 0, "other": 0}
