"""The recovery of a linear is the best of every nested rank by tests/oracles/eckart_young.py, and always finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.sparsity import recovery
from shears.sparsity.recovery import Recovery, recover
from tests.oracles import eckart_young

SHAPES = [(6, 14), (14, 6), (9, 9), (1, 5), (5, 1)]
KINDS = ["norms", "moments", "nothing"]


def problem(seed: int, outputs: int, inputs: int, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """Return what half of the zeros took away, and correlated inputs of different sizes (tokens x inputs)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * (0.2 + torch.rand(inputs, generator=generator))
    weight = torch.randn(outputs, inputs, generator=generator)
    removed = weight * (torch.rand(outputs, inputs, generator=generator) < 0.5)
    return removed, torch.randn(tokens, inputs, generator=generator) @ mixing


def solved(removed: Tensor, seen: Tensor, rank: int, kind: str) -> tuple[Recovery, eckart_young.Array]:
    """Return our recovery and the metric of its error."""
    exact = seen.double()
    norms, moments = exact.square().sum(0).sqrt(), (exact.T @ exact)
    metric = {"norms": norms.square().diag(), "moments": moments, "nothing": torch.eye(len(norms))}[kind]
    given_norms = None if kind == "nothing" else norms  # moments come with norms, and win
    found = recover(removed, rank, given_norms, moments.float() if kind == "moments" else None)
    return found, metric.double().numpy()


def errors(removed: Tensor, found: Recovery, metric: eckart_young.Array) -> list[float]:
    """Return the error of every nested rank from 0."""
    b, a = found.b.double(), found.a.double()
    return [
        eckart_young.error(removed.double().numpy(), (b[:, :rank] @ a[:rank]).numpy(), metric)
        for rank in range(found.rank + 1)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_nested_rank_has_the_least_error_there_is(shape: tuple[int, int], kind: str) -> None:
    removed, seen = problem(0, *shape)
    found, metric = solved(removed, seen, min(shape), kind)
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    np.testing.assert_allclose(errors(removed, found, metric), best, rtol=1e-5, atol=1e-5 * best[0])
    np.testing.assert_allclose(found.energy.numpy(), best[:-1] - best[1:], rtol=1e-4, atol=1e-6 * best[0])
    assert found.total == pytest.approx(best[0], rel=1e-5)
    assert found.kept == pytest.approx(1.0)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), rank=st.integers(1, 15),
    tokens=st.integers(0, 20), idle=st.integers(0, 12), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_whatever_comes_the_result_is_best_balanced_and_finite(
    seed: int, shape: tuple[int, int], rank: int, tokens: int, idle: int, kind: str
) -> None:
    removed, seen = problem(seed, *shape, tokens)
    seen[:, :idle] = 0.0  # features that no token has, or all of them
    found, metric = solved(removed, seen, rank, kind if seen.any() else "nothing")
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    assert found.rank == min(rank, *shape)
    assert torch.isfinite(found.a).all()
    assert torch.isfinite(found.b).all()
    np.testing.assert_allclose(errors(removed, found, metric), best[: found.rank + 1], rtol=1e-4, atol=1e-5 * best[0])
    torch.testing.assert_close(found.a.norm(dim=1), found.b.norm(dim=0), rtol=1e-4, atol=1e-6)
    assert (found.energy.diff() <= 0).all()
    assert ((found.energy > 0) == found.b.any(0)).all()
    assert found.kept == pytest.approx(1 - best[found.rank] / best[0] if best[0] else 1.0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_removed_gives_back_all_of_nothing(kind: str) -> None:
    removed, seen = problem(1, 6, 8)
    found, _ = solved(torch.zeros_like(removed), seen, 3, kind)
    assert not found.a.any()
    assert not found.b.any()
    assert (found.rank, found.total, found.kept) == (3, 0.0, 1.0)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_components_without_energy_are_zero(shape: tuple[int, int]) -> None:
    seen = problem(2, *shape)[1]
    removed = torch.outer(torch.arange(1.0, shape[0] + 1), torch.ones(shape[1]))
    for kind in KINDS:
        found, _ = solved(removed, seen, 4, kind)
        assert found.b.any(0).tolist() == found.a.any(1).tolist() == [True, False, False, False]
        torch.testing.assert_close(found.b @ found.a, removed)


def test_zero_statistics_tell_as_little_as_none() -> None:
    removed = problem(3, 5, 7)[0]
    plain = recover(removed, 3)
    for found in (recover(removed, 3, torch.zeros(7)), recover(removed, 3, None, torch.zeros(7, 7))):
        assert torch.equal(found.b, plain.b)
        assert torch.equal(found.a, plain.a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 150), (150, 60)])
def test_large_linears_come_within_a_percent_of_the_optimum(
    shape: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "EXACT", 0)
    removed, seen = problem(4, *shape, 300)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found, metric = solved(removed, seen, 12, kind)
    assert torch.equal(torch.get_rng_state(), state)
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    got = errors(removed, found, metric)
    assert all(best[rank] * (1 - 1e-4) <= got[rank] <= 1.01 * best[rank] for rank in range(13))
    assert found.kept == pytest.approx(1 - got[12] / best[0], abs=1e-4)
    again, _ = solved(removed, seen, 12, kind)
    assert torch.equal(found.b, again.b)
    assert torch.equal(found.a, again.a)


def test_few_tokens_and_a_rank_above_the_directions_carried_along_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "EXACT", 0)
    removed, seen = problem(6, 20, 40, 3)
    found, metric = solved(removed, seen, 20, "moments")
    best = eckart_young.least_errors(removed.double().numpy(), metric)
    assert torch.isfinite(found.a).all()
    assert errors(removed, found, metric)[-1] <= 1e-5 * best[0]
