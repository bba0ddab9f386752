"""Pruning touches the linears of the blocks, exactly as much as asked, and nothing else."""

import logging

import pytest
import torch
from torch import Tensor, nn

from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.sparsity.plan import choose
from shears.sparsity.prune import sparsify_model
from tests.sparsity.test_plan import all_but
from tests.tiny import CONFIGS, LONGEST, VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = list(TOKENS.split(2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "wanda") for name in CONFIGS), ("llama", "magnitude"), ("gpt2", "magnitude")]
)
def test_every_row_of_every_linear_has_the_exact_count(name: str, method: str) -> None:
    model = tiny_model(name)
    report = sparsify_model(model, BATCHES, SparsifyConfig(sparsity=0.4, method=method))
    prefix, blocks = decoder_blocks(model)
    assert list(report.linears) == [f"{prefix}.{linear}" for linear in linears(blocks)]
    for linear, found in report.linears.items():
        weight = weight_oi(linears(model)[linear])
        assert found.shape == tuple(weight.shape)
        assert int((weight == 0).sum()) == found.zeros
        assert abs(found.zeros - 0.4 * weight.numel()) < 1
        assert ((weight == 0).sum(1) - found.zeros // weight.shape[0]).unique().tolist() in ([0], [0, 1])
    sizes = [found.shape[0] * found.shape[1] for found in report.linears.values()]
    assert sum(found.zeros for found in report.linears.values()) == round(0.4 * sum(sizes))
    assert report.uncovered == 0.0


def test_magnitude_needs_no_calibration_and_takes_the_smallest() -> None:
    model = tiny_model("llama")
    name = "model.layers.1.mlp.down_proj"
    weight = weight_oi(linears(model)[name]).detach().clone()
    sparsify_model(model, [], SparsifyConfig(method="magnitude"))
    order = weight.abs().sort(dim=1, stable=True).indices
    expected = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, order[:, : weight.shape[1] // 2], True)
    assert torch.equal(weight_oi(linears(model)[name]) == 0, expected)


def test_what_is_skipped_is_not_pruned() -> None:
    model = tiny_model()
    skip = all_but("q_proj", r"\.1\.mlp\.up_proj")
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", skip=(skip,)))
    assert list(report.linears) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert report.achieved == 0.5
    assert 0 < report.uncovered < 1
    assert (weight_oi(linears(model)["model.layers.0.mlp.up_proj"]) != 0).all()


def test_the_batch_size_does_not_matter() -> None:
    masks = []
    for size in (1, 4):
        model = tiny_model()
        sparsify_model(model, TOKENS.split(size), SparsifyConfig(method="wanda", precision="fp32"))
        masks.append([weight_oi(linear) == 0 for linear in linears(model).values()])
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))


def test_sliding_windows_change_what_is_pruned() -> None:
    masks = []
    for window in (4, LONGEST):
        model = tiny_model("gemma2", sliding_window=window)
        sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))
        masks.append(weight_oi(linears(model)["model.layers.2.mlp.down_proj"]) == 0)
    assert not torch.equal(*masks)


def test_bf16_models_are_pruned_in_their_own_dtype() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))
    assert report.achieved == 0.5
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_no_sparsity_leaves_the_model_bitwise() -> None:
    model = tiny_model()
    before = state(model)
    assert sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", sparsity=0.0)).achieved == 0.0
    assert all(torch.equal(after, before[key]) for key, after in model.state_dict().items())


def test_pruning_again_keeps_the_zeros_there_are() -> None:
    model = tiny_model()
    sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", sparsity=0.5))
    zeros = {name: weight_oi(linear) == 0 for name, linear in linears(model).items()}
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", sparsity=0.25))
    assert report.achieved == 0.5
    assert all(torch.equal(weight_oi(linear) == 0, zeros[name]) for name, linear in linears(model).items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_weights_that_are_not_finite_are_named_before_anything_is_pruned(method: str, value: float) -> None:
    model = tiny_model()
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        weight_oi(linears(model)[name])[0, 0] = value
    with pytest.raises(InputError, match=r"weights must be finite, model\.layers\.1\.mlp\.up_proj"):
        sparsify_model(model, BATCHES, SparsifyConfig(method=method))
    assert (weight_oi(linears(model)["model.layers.0.mlp.up_proj"]) != 0).all()


def test_a_model_without_linears_is_refused() -> None:
    model = nn.Sequential(nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)]))
    with pytest.raises(InputError, match="must have linears in its decoder blocks"):
        choose(model, SparsifyConfig(method="wanda"))


def test_quantized_weights_are_refused() -> None:
    model = tiny_model()
    linear = linears(model)["model.layers.0.mlp.up_proj"]
    linear.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="load it unquantized"):
        sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch"),
        ([torch.full((1, 8), VOCABULARY)], f"below {VOCABULARY}, got {VOCABULARY}"),
        ([torch.zeros(1, LONGEST + 1, dtype=torch.long)], f"at most this model's context of {LONGEST}"),
    ],
)
def test_calibration_the_model_cannot_read_is_refused(batches: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparsify_model(tiny_model("opt"), batches, SparsifyConfig(method="wanda"))


def test_weights_in_no_linear_are_logged_as_warnings(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mamba")
    with caplog.at_level(logging.WARNING):
        report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))
    assert "are in no linear and stay DENSE" in caplog.text
    beyond = sum(
        weight.numel() for name, weight in model.named_parameters() if "A_log" in name or "conv1d.weight" in name
    )
    total = sum(weight.numel() for weight in decoder_blocks(model)[1].parameters() if weight.ndim >= 2)
    assert report.uncovered == pytest.approx(beyond / total)


def test_a_linear_that_no_token_reaches_is_pruned_by_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    block = decoder_blocks(model)[1][1]
    block.add_module("idle", nn.Linear(8, 2))
    with caplog.at_level(logging.WARNING):
        report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))
    assert "no calibration token reached model.layers.1.idle" in caplog.text
    assert report.linears["model.layers.1.idle"].zeros == 8


def test_dropout_of_a_model_left_in_training_mode_does_not_reach_the_statistics() -> None:
    masks = []
    for training in (False, True):
        model = tiny_model("gpt2").train(training)
        sparsify_model(model, BATCHES, SparsifyConfig(method="wanda"))
        masks.append([weight_oi(linear) == 0 for linear in linears(model).values()])
        assert model.training == training
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))
