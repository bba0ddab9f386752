"""Allocations end to end on tiny models: OWL as the paper has it, one global order of magnitudes."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shears.blockwise.activations import Activations
from shears.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.checkpoints.tensor_files import TensorWriter
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.sparsity.allocation import owl as shares
from shears.sparsity.allocation.overall import outlier_share
from shears.sparsity.allocation.owl import allocate
from shears.sparsity.plan import choose
from shears.sparsity.prune import prune_blocks, sparsify_model
from tests.oracles import owl, wanda
from tests.parts import copied
from tests.tiny import VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(2))
BATCHES = [TOKENS[:3], TOKENS[3:]]
GLOBAL = SparsifyConfig(method="magnitude", pattern="global", sparsity=0.4)


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


def allocated(source: BlockSource, config: SparsifyConfig, budget: int | None = None) -> dict[str, float]:
    chosen = choose(source.model, config)
    return dict(allocate(source, BATCHES, chosen, config, lambda parts=1: Activations(budget), nullcontext))


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
        shares.append(owl.outlier_share([row for matrix in scores for row in matrix.tolist()], 5.0))
    assert len(set(shares)) == len(shares)  # else it would be a test of uniform
    sparsities = owl.sparsities(shares, sparsity, 0.08)
    return {name: value for block, value in zip(weights, sparsities, strict=True) for name in block}


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_owl_is_that_of_the_paper(name: str, sparsity: float) -> None:
    model = with_outliers(name)
    config = SparsifyConfig(allocation="owl", sparsity=sparsity)
    expected = by_the_paper(model, sparsity)
    found = allocated(WholeModel(model), config)
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name], abs=1e-9) for name in found)


def test_owl_prunes_as_it_says_and_looks_at_the_dense_model() -> None:
    model = with_outliers("llama")
    expected = by_the_paper(model, 0.5)
    report = sparsify_model(model, BATCHES, SparsifyConfig(allocation="owl", precision="fp32"))
    for name, linear in report.linears.items():
        assert abs(linear.zeros - expected[name] * math.prod(linear.shape)) < 1
    assert report.achieved == 0.5


def test_owl_over_some_linears_counts_only_those() -> None:
    model = with_outliers("llama")
    config = SparsifyConfig(allocation="owl", targets=("up_proj", r".*layers\.1.*q_proj"))
    found, sizes = allocated(WholeModel(model), config), choose(model, config).sizes
    assert len(found) == 3
    total = sum(sizes.values())
    assert math.fsum(sizes[name] * found[name] for name in found) / total == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("config", [SparsifyConfig(allocation="owl"), GLOBAL], ids=["owl", "global"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_blocks_read_from_files_one_by_one_give_the_same(name: str, config: SparsifyConfig, tmp_path: Path) -> None:
    model = with_outliers(name)
    assert allocated(streamed(model, tmp_path), config, budget=0) == allocated(WholeModel(model), config)


def test_uniform_is_uniform() -> None:
    assert set(allocated(WholeModel(tiny_model()), SparsifyConfig(sparsity=0.3)).values()) == {0.3}


def block_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return all weights that can be pruned, by name (outputs x inputs), as copies."""
    prefix = wanda.BLOCKS[model.config.model_type]
    found: dict[str, Tensor] = {}
    for index, block in enumerate(model.get_submodule(prefix).children()):
        found |= {name: weight.clone() for name, weight in wanda.weights(f"{prefix}.{index}", block).items()}
    return found


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weight.flatten() for weight in weights.values()])


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.77])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_global_takes_the_smallest_of_the_whole_model(name: str, sparsity: float) -> None:
    model = with_outliers(name)
    before = flat(block_weights(model))
    report = sparsify_model(model, [], SparsifyConfig(method="magnitude", pattern="global", sparsity=sparsity))
    zeros = round(sparsity * len(before))
    expected = torch.zeros_like(before, dtype=torch.bool)
    expected[before.abs().sort(stable=True).indices[:zeros]] = True
    after = flat(block_weights(model))
    assert int((after == 0).sum()) == sum(linear.zeros for linear in report.linears.values()) == zeros
    threshold = before.abs()[expected].amax() if zeros else torch.tensor(-1.0)
    ties = before.abs() == threshold  # which of equal weights go is not part of the rule
    assert torch.equal((after == 0) | ties, expected | ties)
    assert torch.equal(after, torch.where(after == 0, 0.0, before))
    assert not sparsity or len({linear.sparsity for linear in report.linears.values()}) > 3


def test_global_is_exact_where_most_weights_are_equal() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in block_weights(model):
            stored = model.get_parameter(f"{weight}.weight")
            stored.copy_((stored * 30).round() / 30)
    before = flat(block_weights(model))
    report = sparsify_model(model, [], GLOBAL)
    after = flat(block_weights(model))
    assert int((after == 0).sum()) == sum(linear.zeros for linear in report.linears.values())
    zeros = max(round(0.4 * len(before)), int((before == 0).sum()))
    assert int((after == 0).sum()) == zeros
    assert before.abs()[after == 0].max() <= before.abs()[after != 0].min()


def test_global_on_files_is_global_in_memory(tmp_path: Path) -> None:
    model = with_outliers("mixtral")
    source = streamed(model, tmp_path)
    found = prune_blocks(source, [], GLOBAL)
    assert found == sparsify_model(model, [], GLOBAL)


def test_global_refuses_to_empty_a_linear_and_says_which() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e-4)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj.*skip"):
        sparsify_model(model, [], GLOBAL)


def test_experts_that_no_token_reached_do_not_count_as_outliers_or_as_none() -> None:
    weights = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    weights[0][0, :3] *= 40
    norms = torch.full((8,), 200.0)
    reached = [(weights[0], norms), (weights[1], norms)]
    share = outlier_share(shares._scores(reached))
    assert outlier_share(shares._scores([*reached, (weights[2], None)])) == share == 3 / 96
    alone = shares._scores([(weight, None) for weight in weights])
    assert all(torch.equal(found, weight.abs()) for found, weight in zip(alone, weights, strict=True))
