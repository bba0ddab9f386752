"""Masks are those of Wanda, restated literally (tests/oracles/wanda.py), on every kind of architecture."""

import pytest
import torch

from shears.config import SparsifyConfig
from shears.models.blocks import block_matrices, decoder_blocks
from shears.sparsity.prune import sparsify_model
from tests.oracles import wanda
from tests.tiny import CONFIGS, MORE_CONFIGS, VOCABULARY, tiny_model

EVERY = {**CONFIGS, **MORE_CONFIGS}
ARCHITECTURES = [name for name, (kind, _) in EVERY.items() if kind in wanda.BLOCKS]


CASES = [(name, sparsity) for name in ARCHITECTURES for sparsity in (0.5, 0.75)]


@pytest.mark.parametrize(  # whole numbers a row: elsewhere the paper rounds down
    ("name", "sparsity"),
    [pytest.param(*case, marks=() if case[0] in CONFIGS or case[1] == 0.5 else pytest.mark.slow) for case in CASES],
)
def test_masks_are_those_of_the_paper(name: str, sparsity: float) -> None:
    tokens = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))
    expected = wanda.prune(tiny_model(name), list(tokens), sparsity)
    model = tiny_model(name)
    report = sparsify_model(model, tokens.split(4), SparsifyConfig(method="wanda", sparsity=sparsity, precision="fp32"))
    prefix, blocks = decoder_blocks(model)
    named = [(f"{prefix}.{index}", block) for index, block in enumerate(blocks)]
    matrices = [matrix for block_name, block in named for matrix in block_matrices(block_name, block)]
    assert {matrix.name for matrix in matrices} == expected.keys()
    assert {matrix.linear for matrix in matrices} == report.linears.keys()
    for matrix in matrices:
        scores, pruned = expected[matrix.name]
        found = matrix.view(model) == 0
        threshold = scores.masked_fill(~pruned, 0.0).amax(1, keepdim=True)
        ties = (scores - threshold).abs() <= 1e-6 * threshold  # equal to float32 rounding
        assert torch.equal(found | ties, pruned | ties), matrix.name
        assert torch.equal(found.sum(1), pruned.sum(1)), matrix.name
