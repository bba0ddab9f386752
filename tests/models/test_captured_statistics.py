"""Norms and moments are those of all tokens together, whatever the batches, the precision and the sharing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.models.blocks import Matrix
from shears.models.capture import InputMoments, InputNorms


def matrix(name: str, inputs: int = 4) -> Matrix:
    return Matrix(name, f"{name}.weight", None, False, (2, inputs))


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_norms_and_moments_are_those_of_all_tokens(sizes: list[int], seed: int) -> None:
    tokens = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(seed))
    norms, moments = InputNorms(), InputMoments()
    for batch in tokens.split(sizes):
        norms.receive(matrix("it"), batch)
        moments.receive(matrix("it"), batch)
    found, products = norms.of(matrix("it")), moments.of(matrix("it"))
    assert found is not None
    assert products is not None
    torch.testing.assert_close(found.float(), tokens.norm(dim=0))
    torch.testing.assert_close(products, torch.einsum("ti,tj->ij", tokens, tokens))
