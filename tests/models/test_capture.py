"""Every form of multiplication is captured, the model computes the same, and nothing stays watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from shears.errors import InputError
from shears.models.blocks import Matrix, block_matrices
from shears.models.capture import capturing
from tests.tiny import VOCABULARY

IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
Seen = dict[str, list[Tensor]]


@contextmanager
def captured(model: nn.Module, block: nn.Module, matrices: list[Matrix]) -> Iterator[Seen]:
    found: Seen = {}
    with capturing(model, block, matrices, lambda matrix, inputs: found.setdefault(matrix.name, []).append(inputs)):
        yield found


class Twice(nn.Module):
    """Two linears on the same tensor, changed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> None:
        self.first(inputs)
        self.second(inputs.mul_(2))


def test_a_tensor_changed_in_place_between_two_linears_is_another() -> None:
    block, seen = nn.ModuleDict({"block": Twice()}), list[tuple[str, float, Tensor]]()

    def receive(matrix: Matrix, inputs: Tensor) -> None:
        seen.append((matrix.name, float(inputs.sum()), inputs))

    with torch.no_grad(), capturing(block, block, block_matrices("block", block["block"]), receive):
        block["block"](torch.ones(3, 4))
    assert [part[:2] for part in seen] == [("block.first", 12.0), ("block.second", 24.0)]
    assert seen[0][2] is not seen[1][2]


SHAPES = st.lists(st.integers(1, 3), min_size=0, max_size=3)
WAYS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "call": lambda linear, x: linear(x),
    "linear": lambda linear, x: F.linear(x, linear.weight, linear.bias),
    "linear by keywords": lambda linear, x: F.linear(weight=linear.weight, input=x),
    "@": lambda linear, x: x @ linear.weight.T,
    "matmul": lambda linear, x: torch.matmul(x, linear.weight.mT),
    "matmul method": lambda linear, x: x.matmul(linear.weight.t()),
    "mm": lambda linear, x: x.flatten(0, -2).mm(linear.weight.T) if x.ndim > 1 else linear(x),
    "addmm": lambda linear, x: torch.addmm(linear.bias, x.reshape(-1, x.shape[-1]), linear.weight.T),
    "addmm by keywords": lambda linear, x: torch.addmm(
        linear.bias, mat1=x.reshape(-1, x.shape[-1]), mat2=linear.weight.T
    ),
    "weight first": lambda linear, x: linear.weight @ x.mT if x.ndim > 1 else linear(x),
}


@settings(max_examples=15)
@given(lead=SHAPES, outputs=st.integers(2, 4), inputs=st.integers(1, 3))
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_multiply_is_seen(way: str, lead: list[int], outputs: int, inputs: int) -> None:
    linear, tokens = nn.Linear(inputs, outputs), torch.randn(*lead, inputs)
    model = nn.ModuleDict({"it": linear})
    with torch.no_grad(), captured(model, model, block_matrices("", model)) as found:
        WAYS[way](linear, tokens)
    (seen,) = found["it"]
    assert torch.equal(seen, tokens.reshape(-1, inputs))


def test_a_weight_multiplied_along_its_outputs_is_refused_also_if_it_is_square() -> None:
    for side in (5, 4):
        linear = nn.Linear(4, side)
        model = nn.ModuleDict({"it": linear})
        with (
            torch.no_grad(),
            captured(model, model, block_matrices("", model)) as found,
            pytest.raises(InputError, match="it is multiplied along its outputs"),
        ):
            torch.ones(2, side) @ linear.weight
        assert not found
