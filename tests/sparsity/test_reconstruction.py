"""A pruned block is fitted to the dense model's hidden states by gradient steps, and its zeros stay."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.config import SparsifyConfig
from shears.sparsity import reconstruction
from shears.sparsity.prune import sparsify_model
from tests.tiny import VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))
BATCHES = list(TOKENS.split(2))


def settings(**others: Any) -> SparsifyConfig:
    return SparsifyConfig(**{"method": "wanda", "precision": "fp32", "reconstruct": "block", **others})


@pytest.mark.parametrize(("name", "method"), [("llama", "wanda"), ("gpt2", "magnitude"), ("mixtral", "admm")])
def test_every_blocks_error_falls_and_no_zero_moves(name: str, method: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = tiny_model(name)
    report = sparsify_model(plain, BATCHES[:2], settings(method=method, reconstruct="none"))
    fitted = tiny_model(name)
    with caplog.at_level("INFO", "shears.sparsity.reconstruction"):
        again = sparsify_model(fitted, BATCHES[:2], settings(method=method))
    errors = [record.args for record in caplog.records if "relative error" in record.msg]
    assert len(errors) == 2
    assert all(after < pruned for _, pruned, after, _ in errors)  # type: ignore[misc, operator]
    assert report.linears == again.linears
    if method == "magnitude":  # others choose the second block's zeros by what goes into it
        assert all(torch.equal(a == 0, b == 0) for a, b in zip(plain.parameters(), fitted.parameters(), strict=True))


@torch.no_grad()
def outputs(model: Any, index: int, sequence: Tensor) -> Tensor:
    """Return what a block puts out when the whole model runs."""
    found: list[Tensor] = []
    handle = model.model.layers[index].register_forward_hook(lambda module, args, output: found.append(output))
    with torch.enable_grad():
        model(sequence[None], use_cache=False)
    handle.remove()
    return found[0]


def relative_error(found: Tensor, target: Tensor) -> Tensor:
    return (((found - target) ** 2).sum(2) / (target**2).sum(2)).mean()


def literally(dense: Any, sparse: Any, sequences: Sequence[Tensor], seed: int, reach: float) -> None:
    """Fit the sparse model in place, with whole models, autograd and torch's Adam."""
    for index, block in enumerate(sparse.model.layers):
        weights = [weight for weight in block.parameters() if weight.ndim == 2]
        for weight in weights:
            mask = weight.detach() != 0
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        with torch.no_grad():
            errors = [relative_error(outputs(sparse, index, each), outputs(dense, index, each)) for each in sequences]
            rate = reach * float(sum(errors) / len(errors)) ** 0.5
        sizes = [float(weight.detach()[weight.detach() != 0].square().mean().sqrt()) for weight in weights]
        adam = torch.optim.Adam(
            [{"params": [w], "lr": rate * s} for w, s in zip(weights, sizes, strict=True)],
            betas=reconstruction.BETAS,
            foreach=False,
        )
        first = [group["lr"] for group in adam.param_groups]
        generator = random.Random(f"reconstruct/{seed}/{index}")
        order: list[int] = []
        for _ in range(reconstruction.EPOCHS):
            order += generator.sample(range(len(sequences)), len(sequences))
        for step, number in enumerate(order):
            for group, rate in zip(adam.param_groups, first, strict=True):
                group["lr"] = rate * (len(order) - step) / len(order)
            target = outputs(dense, index, sequences[number]).detach()
            loss = relative_error(outputs(sparse, index, sequences[number]), target)
            adam.zero_grad()
            loss.backward(inputs=weights)
            adam.step()


def test_a_model_is_fitted_as_whole_models_and_autograd_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "REACHES", (0.03,))
    fitted = tiny_model("llama")
    dense = copy.deepcopy(fitted)
    sparse = copy.deepcopy(fitted)
    sparsify_model(sparse, [], settings(method="magnitude", reconstruct="none"))
    before = copy.deepcopy(sparse)
    sparsify_model(fitted, BATCHES[:2], settings(method="magnitude", seed=3))
    literally(dense, sparse, list(TOKENS[:4]), seed=3, reach=0.03)
    for start, expected, found in zip(before.parameters(), sparse.parameters(), fitted.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
        assert start.ndim < 2 or start.shape[0] == VOCABULARY or (start - found).abs().max() > 1e-4


def test_a_fit_that_raises_the_error_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "REACHES", (1e5, 1e6))
    plain = tiny_model("llama")
    sparsify_model(plain, [], settings(method="magnitude", reconstruct="none"))
    fitted = tiny_model("llama")
    sparsify_model(fitted, BATCHES[:1], settings(method="magnitude"))
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), fitted.parameters(), strict=True))
