"""Masks are those of Wanda, restated literally (tests/oracles/wanda.py), on every kind of architecture."""

import pytest
import torch

from shears.models import linears, weight_oi
from shears.recipe import SparsifyConfig
from shears.sparsity.prune import sparsify_model
from tests.oracles import wanda
from tests.tiny import VOCABULARY, tiny_model

ARCHITECTURES = ["llama", "mistral", "qwen3", "gemma2", "gpt_neox", "opt", "phi", "phi3", "gpt2", "bloom"]


@pytest.mark.parametrize("sparsity", [0.5, 0.75])  # whole numbers a row: elsewhere the paper rounds down
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masks_are_those_of_the_paper(name: str, sparsity: float) -> None:
    tokens = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))
    expected = wanda.prune(tiny_model(name), list(tokens), sparsity)
    model = tiny_model(name)
    report = sparsify_model(model, tokens.split(4), SparsifyConfig(sparsity=sparsity, precision="fp32"))
    assert report.linears.keys() == expected.keys()
    for linear in report.linears:
        scores, pruned = expected[linear]
        found = weight_oi(linears(model)[linear]) == 0
        threshold = scores.masked_fill(~pruned, 0.0).amax(1, keepdim=True)
        ties = (scores - threshold).abs() <= 1e-6 * threshold  # equal to float32 rounding
        assert torch.equal(found | ties, pruned | ties), linear
        assert torch.equal(found.sum(1), pruned.sum(1)), linear


def test_the_oracle_prunes_a_row_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 5.0]])
    assert wanda.lowest(scores, 0.5).tolist() == [[False, True, True, False, False]]  # stable: the first of two ties
