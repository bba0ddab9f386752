"""The sensitivity allocation sees the gradients of an ordinary backward, and changes nothing."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import TensorWriter
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.models.blockwise.sources import BlockSource, Skeleton, StreamedModel, WholeModel
from shears.sparsity.allocation import sensitivity
from shears.sparsity.allocation.overall import HIGHEST_SPARSITY
from shears.sparsity.allocation.sensitivity import REACH, SAMPLE, SEQUENCES, STRENGTH, sensitivity_sparsities
from shears.sparsity.plan import CalibrationRun, choose
from shears.sparsity.prune import sparsify_model
from tests.oracles import fisher
from tests.parts import copied
from tests.sparsity.test_plan import all_but
from tests.tiny import VOCABULARY, tiny_model

NAMES = ["llama", "gpt2", "mixtral"]
TOKENS = torch.randint(0, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(5))
BATCHES = [TOKENS[:2], TOKENS[2:]]


def sharp(name: str, **changes: Any) -> PreTrainedModel:
    """Return a model whose weights are so large that its attention, its experts and its losses differ."""
    model = tiny_model(name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return model


def allocated(
    source: BlockSource, sparsity: float = 0.5, batches: list[Tensor] = BATCHES, budget: str = "2GB"
) -> dict[str, float]:
    config = SparsifyConfig(method="wanda", precision="fp32", activation_budget=budget)
    return sensitivity_sparsities(
        CalibrationRun(source, batches, config), choose(source.model, SparsifyConfig(method="wanda")), sparsity
    )


def mean(allocation: dict[str, float], model: PreTrainedModel) -> float:
    sizes = choose(model, SparsifyConfig(method="wanda")).sizes
    assert allocation.keys() == sizes.keys()
    return math.fsum(sizes[name] * value for name, value in allocation.items()) / sum(sizes.values())


def recorded(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the sums by weight."""
    sums: dict[str, Any] = {}
    backward = sensitivity._backward

    def record(run: Any, inputs: Any, carried: list[Tensor], matrices: Any) -> Any:
        found = backward(run, inputs, carried, matrices)
        sums.update({matrix.name: pair for matrix, pair in found.items()})
        return found

    monkeypatch.setattr(sensitivity, "_backward", record)
    allocated(WholeModel(model))
    return sums


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that computes in float64."""
    double: PreTrainedModel = copy.deepcopy(model).double()
    double.config._experts_implementation = "eager"  # the grouped product knows no float64
    return double


def assert_near(found: Tensor, expected: Tensor, name: str) -> None:
    """Compare float32 with float64; small entries are sums of terms that nearly cancel."""
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()), msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_one_backward_of_the_whole_model_a_sequence(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp(name)
    expected = fisher.sums(exact(model), list(TOKENS))
    found = recorded(model, monkeypatch)
    assert found.keys() == expected.keys()
    for weight, (rows, columns) in expected.items():
        assert_near(found[weight][0], rows, weight)
        assert_near(found[weight][1], columns, weight)


def test_sums_are_taken_per_sequence_not_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp("llama")
    alone = allocated(WholeModel(model), batches=list(TOKENS.split(1)))
    assert allocated(WholeModel(model), batches=[TOKENS]) == alone
    monkeypatch.setattr(sensitivity, "SEQUENCES", 2)
    assert allocated(WholeModel(model)) == allocated(WholeModel(model), batches=[TOKENS[:2]]) != alone
    assert SEQUENCES >= 3


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_the_sparsity_asked_for_and_nothing_strays(name: str, sparsity: float) -> None:
    model = sharp(name)
    found = allocated(WholeModel(model), sparsity)
    assert mean(found, model) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= value <= HIGHEST_SPARSITY for value in found.values())
    assert all(abs(value - sparsity) <= STRENGTH * REACH + 1e-12 for value in found.values())
    assert sparsity == 0 or len(set(found.values())) > 3


def test_linears_that_are_skipped_do_not_count() -> None:
    model = sharp("llama")
    config = SparsifyConfig(method="wanda", skip=(all_but("up_proj", r"layers\.1.*q_proj"),), precision="fp32")
    chosen = choose(model, config)
    found = sensitivity_sparsities(CalibrationRun(WholeModel(model), BATCHES, config), chosen, 0.5)
    assert found.keys() == chosen.sizes.keys()
    assert len(set(found.values())) == 3
    zeros = math.fsum(size * found[name] for name, size in chosen.sizes.items())
    assert zeros / sum(chosen.sizes.values()) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = sharp(name)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    allocated(WholeModel(model))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


def test_requires_grad_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp("llama").requires_grad_(False)

    def fail(*args: Any) -> None:
        raise RuntimeError("in between")

    monkeypatch.setattr(sensitivity, "_add", fail)
    with pytest.raises(RuntimeError, match="in between"):
        allocated(WholeModel(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [*NAMES, "llama_untied"])
def test_blocks_read_from_files_one_by_one_give_the_same(name: str, tmp_path: Path) -> None:
    model = sharp(name)
    model.save_pretrained(tmp_path / "m")
    skeleton = Skeleton.open(tmp_path / "m", torch.float32)
    writer = TensorWriter(skeleton.files, copied(tmp_path / "m", tmp_path / "out"))
    assert allocated(StreamedModel(skeleton, writer), budget="0") == allocated(WholeModel(model))
    assert all(tensor.is_meta for tensor in skeleton.model.get_submodule(skeleton.blocks).parameters())


def test_weights_with_larger_gradients_stay_denser() -> None:
    found = []
    for factor in (1 / 3, 1.0, 3.0):
        model = tiny_model("llama")
        with torch.no_grad():  # all that goes through the gated product counts by the factor
            model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(factor)
        found.append(allocated(WholeModel(model)))
    for weight in ("gate_proj", "up_proj", "down_proj"):
        quiet, plain, loud = (shares[f"model.layers.1.mlp.{weight}"] for shares in found)
        assert quiet > plain > loud, weight
        assert quiet > 0.5 > loud, weight


def test_experts_that_no_sequence_reaches_are_neither_spared_nor_emptied() -> None:
    """Without gradients, weights get the overall sparsity."""
    model = sharp("mixtral", num_local_experts=4, num_experts_per_tok=1)
    with torch.no_grad():
        for block in model.model.layers:
            block.get_parameter("mlp.gate.weight").zero_()  # all alike: every token takes the first expert
    expected = fisher.sums(exact(model), list(TOKENS))
    unreached = [name for name, (rows, _) in expected.items() if not rows.any()]
    found = allocated(WholeModel(model))
    assert len(unreached) == 2 * 2 * 3
    assert {found[name] for name in unreached} == {0.5}
    assert mean(found, model) == pytest.approx(0.5, abs=1e-12)


def test_costs_are_the_cheapest_weights_first() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 30, generator=generator)
    rows, columns = torch.rand(20, generator=generator) * 9, torch.rand(30, generator=generator)
    columns *= rows.sum() / columns.sum()  # sums of one matrix
    grid, found = sensitivity._curve(weight, (rows, columns))
    costs = sorted((weight.double() ** 2 * rows[:, None] * columns / rows.sum()).flatten().tolist())
    for share, cost in zip(grid.tolist(), found.tolist(), strict=True):
        assert cost == pytest.approx(sum(costs[: round(share * 600)]), rel=1e-4)


@pytest.mark.parametrize("shape", [(512, 512), (384, 1024)])
def test_a_sample_of_the_costs_stands_for_all(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where single inputs carry most of the cost, as in real models."""
    generator = torch.Generator().manual_seed(0)
    weight, rows, columns = torch.randn(shape, generator=generator), torch.ones(shape[0]), torch.ones(shape[1])
    columns[1::8] *= 50
    assert weight.numel() > 2 * SAMPLE
    sampled = sensitivity._curve(weight, (rows, columns))[1]
    monkeypatch.setattr(sensitivity, "SAMPLE", weight.numel())
    torch.testing.assert_close(
        sampled, sensitivity._curve(weight, (rows, columns))[1], rtol=0.05, atol=1e-3
    )  # a sample


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = sharp("llama_untied")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").fill_(1e38)
    with pytest.raises(InputError, match="must be finite"):
        allocated(WholeModel(model))


def test_pruning_follows_the_allocation() -> None:
    model = sharp("llama")
    expected = allocated(WholeModel(model))
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", allocation="sensitivity", precision="fp32"))
    sizes = choose(model, SparsifyConfig(method="wanda")).sizes
    assert sum(linear.zeros for linear in report.linears.values()) == sum(sizes.values()) // 2
    assert all(abs(report.linears[name].zeros - sizes[name] * share) < 1 for name, share in expected.items())
