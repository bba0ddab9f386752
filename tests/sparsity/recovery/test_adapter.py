"""The recovery of every linear of a model in memory is the best there is for the inputs it was pruned on."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shears.config import SparsifyConfig
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.models.blockwise.walk import IrregularBlocks
from shears.sparsity import plan
from shears.sparsity.prune import sparsify_model
from shears.sparsity.recovery import Recovered
from tests.oracles import eckart_young
from tests.tiny import VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))
BATCHES = list(TOKENS.split(2))
BOTH = ["norms", "moments"]


def metrics(model: nn.Module, by: str) -> dict[str, eckart_young.Array]:
    """Oracle: the second moments of every linear's inputs over all tokens, by hooks on the whole model."""
    found: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found.get(name, torch.zeros(1)) + rows.T @ rows

        return hook

    hooks = [linear.register_forward_pre_hook(look(name)) for name, linear in linears(model).items()]
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    return {name: (moments if by == "moments" else moments.diag().diag()).numpy() for name, moments in found.items()}


def check_against_oracle(
    recovered: Recovered | None, dense: nn.Module, sparse: nn.Module, known: dict[str, eckart_young.Array]
) -> None:
    assert recovered is not None
    for name, recovery in recovered.linears.items():
        removed = weight_oi(linears(dense)[name]) - weight_oi(linears(sparse)[name])
        expected = eckart_young.approximation(removed.detach().double().numpy(), known[name], recovery.rank)
        difference = np.abs((recovery.b @ recovery.a).numpy() - expected).max()
        assert difference < 1e-4 * np.abs(expected).max(), name
        least = eckart_young.least_errors(removed.detach().double().numpy(), known[name])
        assert recovery.kept == pytest.approx(1 - least[recovery.rank] / least[0], abs=1e-4)


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_delta_is_the_best_for_the_dense_blocks_inputs_behind_pruned_blocks(
    name: str, method: str, by: str
) -> None:
    model, known = tiny_model(name), dict[str, eckart_young.Array]()
    config = SparsifyConfig(method=method, recover_rank=6, recover_by=by, precision="fp32")
    report = sparsify_model(model, BATCHES, config)
    prefix, blocks = decoder_blocks(model)
    mixed = tiny_model(name)  # the blocks become sparse one after the other
    for index, block in enumerate(decoder_blocks(mixed)[1]):
        start = f"{prefix}.{index}."
        known |= {key: metric for key, metric in metrics(mixed, by).items() if key.startswith(start)}
        block.load_state_dict(blocks[index].state_dict())
    check_against_oracle(report.recovered, tiny_model(name), model, known)


@pytest.mark.parametrize("by", BOTH)
def test_a_method_that_moves_weights_gets_the_best_for_the_inputs_it_was_pruned_on(by: str) -> None:
    model = tiny_model()
    config = SparsifyConfig(method="sparsegpt", recover_rank=6, recover_by=by, precision="fp32")
    report = sparsify_model(model, BATCHES, config)
    check_against_oracle(report.recovered, tiny_model(), model, metrics(model, by))


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_a_linear_that_no_token_reaches_gets_the_plain_best(method: str, by: str) -> None:
    model = tiny_model()
    idle = nn.Linear(8, 4)
    weight = idle.weight.detach().clone()
    decoder_blocks(model)[1][1].add_module("idle", idle)
    report = sparsify_model(model, BATCHES, SparsifyConfig(method=method, recover_rank=2, recover_by=by))
    assert report.recovered is not None
    recovery = report.recovered.linears["model.layers.1.idle"]
    removed = (weight - idle.weight.detach()).double().numpy()
    expected = eckart_young.approximation(removed, np.eye(8), 2)
    np.testing.assert_allclose((recovery.b @ recovery.a).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("by", BOTH)
def test_blocks_that_allow_no_walk_have_one_too(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IrregularBlocks("no walk")

    monkeypatch.setattr(plan, "Walk", refuse)
    model = tiny_model()
    report = sparsify_model(
        model, BATCHES, SparsifyConfig(method="wanda", recover_rank=6, recover_by=by, precision="fp32")
    )
    check_against_oracle(report.recovered, tiny_model(), model, metrics(tiny_model(), by))


def test_bf16_weights_lose_nothing_but_their_zeros() -> None:
    model, dense = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    report = sparsify_model(model, BATCHES, SparsifyConfig(method="wanda", recover_rank=32, precision="fp32"))
    assert report.recovered is not None
    for name, recovery in report.recovered.linears.items():
        removed = (weight_oi(linears(dense)[name]) - weight_oi(linears(model)[name])).float()
        torch.testing.assert_close(recovery.b @ recovery.a, removed, atol=1e-5, rtol=0)
