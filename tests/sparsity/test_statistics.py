"""Input norms are those of all tokens together, whatever the batches, the precision and the sharing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shears.sparsity.statistics import InputNorms


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_norms_are_those_of_all_tokens_together(sizes: list[int], seed: int) -> None:
    tokens = torch.randn(sum(sizes), 3, 4, generator=torch.Generator().manual_seed(seed))
    linear = nn.Linear(4, 2)
    with InputNorms({"it": linear}) as statistics:
        for batch in tokens.split(sizes):
            linear(batch)
    torch.testing.assert_close(statistics.norms()["it"].float(), tokens.reshape(-1, 4).norm(dim=0))


def test_linears_fed_the_same_tensor_have_the_same_norms() -> None:
    first, second, inputs = nn.Linear(4, 2), nn.Linear(4, 3), torch.randn(5, 4)
    with InputNorms({"first": first, "second": second}) as statistics:
        first(inputs), second(inputs)
    assert torch.equal(statistics.norms()["first"], statistics.norms()["second"])


def test_a_tensor_changed_in_place_between_two_linears_is_measured_anew() -> None:
    first, second, inputs = nn.Linear(4, 2), nn.Linear(4, 2), torch.randn(5, 4)
    with torch.no_grad(), InputNorms({"first": first, "second": second}) as statistics:
        first(inputs)
        second(inputs.mul_(2))
    assert torch.equal(statistics.norms()["second"], 2 * statistics.norms()["first"])


def test_autocast_around_does_not_touch_the_statistics() -> None:
    linear, inputs = nn.Linear(4, 2), 1 + torch.rand(4000, 4)
    with InputNorms({"it": linear}) as statistics, torch.autocast("cpu", torch.bfloat16):
        linear(inputs)
    torch.testing.assert_close(statistics.norms()["it"].float(), inputs.norm(dim=0))


def test_half_precision_inputs_are_summed_in_float32() -> None:
    linear, inputs = nn.Linear(2, 2).half(), torch.full((10, 2), 300.0).half()  # 300 ** 2 is beyond float16
    with InputNorms({"it": linear}) as statistics:
        linear(inputs)
    torch.testing.assert_close(statistics.norms()["it"].float(), inputs.float().norm(dim=0))


def test_a_linear_that_no_token_reached_is_left_out() -> None:
    reached, idle, empty = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)
    with InputNorms({"reached": reached, "idle": idle, "empty": empty}) as statistics:
        reached(torch.ones(1, 4))
        empty(torch.ones(0, 4))
    assert statistics.norms().keys() == {"reached"}


def test_inputs_by_keyword_are_seen() -> None:
    linear = nn.Linear(4, 2)
    with InputNorms({"it": linear}) as statistics:
        linear(input=torch.ones(4, 4))
    assert statistics.norms()["it"].tolist() == [2.0] * 4


def test_no_hook_stays_after_an_error() -> None:
    linear = nn.Linear(4, 2)
    with pytest.raises(RuntimeError), InputNorms({"it": linear}):
        linear(torch.ones(1, 5))
    assert not linear._forward_pre_hooks
