"""OWL is that of the paper, as a formula and on tiny models, and keeps the overall sparsity."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import TensorWriter
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.sparsity.allocation.overall import HIGHEST_SPARSITY
from shears.sparsity.allocation.owl import block_scores, outlier_share, owl, owl_sparsities
from shears.sparsity.plan import CalibrationRun, choose
from shears.sparsity.prune import sparsify_model
from tests.oracles import owl as oracle
from tests.oracles import wanda
from tests.parts import copied
from tests.sparsity.test_plan import all_but
from tests.tiny import VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(2))
BATCHES = [TOKENS[:3], TOKENS[3:]]
NAMES = "abcdefgh"
SIZES = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 10**9), min_size=1)
SPARSITY = st.floats(0, HIGHEST_SPARSITY)


def with_outliers(name: str) -> PreTrainedModel:
    """Return a model with ever more large weights from block to block."""
    model = tiny_model(name, seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for index, block in enumerate(decoder_blocks(model)[1]):
            for parameter in block.parameters():
                if parameter.ndim >= 2:
                    chosen = torch.rand(parameter.shape, generator=generator) < 0.01 * (index + 1)
                    parameter[chosen] *= 30
    return model


def allocated(source: BlockSource, config: SparsifyConfig) -> dict[str, float]:
    return owl_sparsities(CalibrationRun(source, BATCHES, config), choose(source.model, config), config.sparsity)


def streamed(model: PreTrainedModel, folder: Path) -> StreamedModel:
    model.save_pretrained(folder / "m")
    skeleton = Skeleton.open(folder / "m", torch.float32)
    return StreamedModel(skeleton, TensorWriter(skeleton.files, copied(folder / "m", folder / "out")))


def by_the_paper(model: PreTrainedModel, sparsity: float) -> dict[str, float]:
    """Return OWL's sparsity of every weight: scores of the dense model, all linears of a block together."""
    prefix = wanda.BLOCKS[model.config.model_type]
    weights, shares = [], []
    for index, block in enumerate(model.get_submodule(prefix).children()):
        norms = wanda.input_norms(model, f"{prefix}.{index}", block, list(TOKENS))
        weights.append(wanda.weights(f"{prefix}.{index}", block))
        scores = [weight.double().abs() * norms[name] for name, weight in weights[-1].items()]
        shares.append(oracle.outlier_share([row for matrix in scores for row in matrix.tolist()], 5.0))
    assert len(set(shares)) == len(shares)  # else it would be a test of uniform
    sparsities = oracle.sparsities(shares, sparsity, 0.08)
    return {name: value for block, value in zip(weights, sparsities, strict=True) for name in block}


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_owl_is_that_of_the_paper(name: str, sparsity: float) -> None:
    model = with_outliers(name)
    config = SparsifyConfig(method="wanda", allocation="owl", sparsity=sparsity, precision="fp32")
    expected = by_the_paper(model, sparsity)
    found = allocated(WholeModel(model), config)
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name], abs=1e-9) for name in found)


def test_owl_prunes_as_it_says_and_looks_at_the_dense_model() -> None:
    model = with_outliers("llama")
    expected = by_the_paper(model, 0.5)
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", allocation="owl", precision="fp32"))
    for name, linear in report.linears.items():
        assert abs(linear.zeros - expected[name] * math.prod(linear.shape)) < 1
    assert report.achieved == 0.5


def test_owl_over_some_linears_counts_only_those() -> None:
    model = with_outliers("llama")
    config = SparsifyConfig(
        method="wanda", allocation="owl", skip=(all_but("up_proj", r"layers\.1.*q_proj"),), precision="fp32"
    )
    found, sizes = allocated(WholeModel(model), config), choose(model, config).sizes
    assert len(found) == 3
    total = sum(sizes.values())
    assert math.fsum(sizes[name] * found[name] for name in found) / total == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_blocks_read_from_files_one_by_one_give_the_same(name: str, tmp_path: Path) -> None:
    model = with_outliers(name)
    config = SparsifyConfig(method="wanda", allocation="owl", precision="fp32", activation_budget="0")
    assert allocated(streamed(model, tmp_path), config) == allocated(WholeModel(model), config)


def test_experts_that_no_token_reached_do_not_count_as_outliers_or_as_none() -> None:
    weights = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    weights[0][0, :3] *= 40
    norms = torch.full((8,), 200.0)
    reached = [(weights[0], norms), (weights[1], norms)]
    share = outlier_share(block_scores(reached))
    assert outlier_share(block_scores([*reached, (weights[2], None)])) == share == 3 / 96
    alone = block_scores([(weight, None) for weight in weights])
    assert all(torch.equal(found, weight.abs()) for found, weight in zip(alone, weights, strict=True))


def mean(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Return the overall sparsity."""
    return math.fsum(sizes[name] * sparsities[name] for name in sizes) / sum(sizes.values())


def numbers(data: st.DataObject, names: Mapping[str, int], low: float, high: float) -> dict[str, float]:
    """Draw a number per name."""
    return {name: data.draw(st.floats(low, high)) for name in names}


@given(sizes=SIZES, sparsity=SPARSITY, spread=st.floats(0, 1), data=st.data())
def test_owl_meets_the_overall_sparsity_inside_its_band(
    sizes: dict[str, int], sparsity: float, spread: float, data: st.DataObject
) -> None:
    shares = numbers(data, sizes, 0, 1)
    found = owl(shares, sizes, sparsity, spread)
    assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= value <= HIGHEST_SPARSITY for value in found.values())
    assert max(found.values()) - min(found.values()) <= 2 * spread + 1e-9
    for one, other in itertools.permutations(sizes, 2):
        assert shares[one] <= shares[other] or found[one] <= found[other]  # more outliers, not more zeros


@given(shares=st.lists(st.floats(0, 0.2), min_size=2, max_size=8), sparsity=st.floats(0.3, 0.7))
def test_owl_with_blocks_of_one_size_is_that_of_the_paper(shares: list[float], sparsity: float) -> None:
    assume(max(shares) - min(shares) > 1e-6)
    named = dict(zip(NAMES, shares, strict=False))
    found = owl(named, dict.fromkeys(named, 1000), sparsity, 0.08)
    assert list(found.values()) == pytest.approx(oracle.sparsities(shares, sparsity, 0.08), abs=1e-9)


def test_owl_by_hand() -> None:
    found = owl({"a": 0.0, "b": 0.1, "c": 0.05}, {"a": 10, "b": 10, "c": 20}, 0.5)
    assert found == {"a": pytest.approx(0.58), "b": pytest.approx(0.42), "c": pytest.approx(0.5)}
    assert owl({"a": 0.3, "b": 0.3}, {"a": 1, "b": 9}, 0.5) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_the_outlier_share_is_that_of_the_paper(seed: int) -> None:
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed)).exp().square()
    assert outlier_share([scores]) == oracle.outlier_share(scores.tolist(), 5.0) > 0
    assert outlier_share([scores], 3.0) == oracle.outlier_share(scores.tolist(), 3.0)


def test_matrices_of_a_block_count_as_one() -> None:
    first, second = torch.ones(4, 6), torch.tensor([[100.0, 1.0, 1.0]])
    together = [[*first.flatten().tolist(), *second[0].tolist()]]
    assert outlier_share([first, second]) == oracle.outlier_share(together, 5.0) == 1 / 27


def test_shares_that_are_no_numbers_and_sparsities_out_of_reach_are_refused() -> None:
    with pytest.raises(InputError, match="must be finite"):
        owl({"a": 0.1, "b": math.nan}, {"a": 3, "b": 4}, 0.5)
    with pytest.raises(InputError, match=r"at most 0.99 must allow the overall sparsity 0.995, they reach"):
        owl({"a": 0.1}, {"a": 3}, 0.995)
