"""Distillation from the largest ranks: the loss is that of a plain restatement, and so are the gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.adapt.distill import distilled, largest_says
from shears.adapt.elastic import ElasticAdapter
from shears.adapt.groups import build_space
from shears.adapt.ready import add_lora
from shears.adapt.space import RankConfig
from shears.adapt.train import train
from shears.adapt.training import trainer as trainer_module
from shears.config import TrainConfig
from shears.data.collate import pad_left
from shears.data.examples import Tokenized
from shears.data.packing import pack
from shears.errors import InputError
from shears.models.losses import IGNORED, Predictions, packed_predictions, padded_predictions
from tests.adapt.small_training import SETTINGS, assert_close, assert_same, log, weights
from tests.tiny import tiny_model

ROWS = [Tokenized([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8]), Tokenized([9, 10, 11], [IGNORED, IGNORED, 11]),
        Tokenized([3, 4, 5, 6, 7], [IGNORED, 4, 5, 6, 7])]  # fmt: skip


def restated(logits: Tensor, targets: list[int], teacher: Tensor, shares: list[float]) -> list[float]:
    """Token by token in float64, from the definitions of cross-entropy and of Kullback-Leibler divergence."""
    result = []
    for row, target, said, share in zip(logits.double(), targets, teacher.double(), shares, strict=True):
        own, soft = (values.exp() / values.exp().sum() for values in (row, said))
        loss = 0.0 if target == IGNORED else -own[target].log().item()
        divergence = 0.0 if target == IGNORED else sum(
            (q * (q / p).log()).item() for p, q in zip(own, soft, strict=True)
        )  # fmt: skip
        result.append((1 - share) * loss + share * divergence)
    return result


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.0], [0.5, 0.0, 1.0], [1.0, 1.0, 1.0]])
def test_the_loss_is_the_restated_one(shares: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(6, 11, generator=generator) for _ in range(2))
    targets, rows = torch.tensor([4, 2, IGNORED, 7, 10, 1]), torch.tensor([0, 0, 1, 1, 2, 2])
    found = Predictions(logits, targets, rows)
    result = distilled(found, found.losses(), teacher, torch.tensor(shares))
    expected = restated(logits, targets.tolist(), teacher, [shares[row] for row in rows.tolist()])
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_student_that_says_the_same_learns_nothing() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = Predictions(logits, torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]))
    distilled(found, found.losses(), logits.detach().clone(), torch.tensor([1.0])).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_teacher_is_the_largest_ranks_and_leaves_no_trace(packed: bool, dtype: torch.dtype | None) -> None:
    """Neither in the ranks, nor in the training mode, nor (autocast keeps casts) in the gradients that follow."""
    base = tiny_model()
    space = build_space(base, ("q_proj+k_proj+v_proj", "up_proj"), (6, 4, 2))
    model = add_lora(base, space, TrainConfig(data="-", ranks=(6, 4, 2), dropout=0.3))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3
    elastic = ElasticAdapter(model, space)
    batch, predict = (pack(ROWS, 16, 0), packed_predictions) if packed else (pad_left(ROWS, 0), padded_predictions)
    model.eval()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected = predict(model, batch).logits.detach()
    model.train()
    small = elastic.activate(elastic.space.minimal())
    gradients = []
    for taught in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            if taught:
                said = largest_says(model, elastic, predict, batch)
                torch.testing.assert_close(said, expected, rtol=0, atol=0)
                assert not said.requires_grad
            predict(model, batch).losses().sum().backward()
        gradients.append([each.grad.clone() for each in model.parameters() if each.grad is not None])
    assert elastic.active == small
    assert model.training
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


WAYS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "sandwich in a curriculum": {"sampling": "sandwich", "curriculum": 0.8},
    "per-example, padded, split": {"sampling": "per-example", "packing": False, "micro_batch_size": 2},
    "recomputed": {"sampling": "sandwich", "gradient_checkpointing": True},
    "sparse adapter": {"sparse_adapter": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_smaller_ranks_ask_the_largest_and_these_ask_nobody(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A share of 0 of nothing: with a teacher that is asked and not heard, training is what it was."""
    asked: list[bool] = []

    def deaf(found: Predictions, losses: Tensor, teacher: Tensor, shares: Tensor) -> Tensor:
        asked.append(True)
        return distilled(found, losses, teacher, torch.zeros_like(shares))

    settings = {**SETTINGS, **WAYS[way], "data": data}
    plain = train(base, tmp_path / "plain", **settings)
    assert not asked
    monkeypatch.setattr(trainer_module, "distilled", deaf)
    assert_same(plain, train(base, tmp_path / "deaf", distill=0.5, **settings))
    assert asked
    monkeypatch.undo()
    taught = train(base, tmp_path / "taught", distill=0.5, **settings)
    assert any(not torch.equal(weights(plain)[name], weights(taught)[name]) for name in weights(plain))


def test_only_steps_of_smaller_ranks_are_taught(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RankConfig] = []

    def noted(model: Any, elastic: ElasticAdapter, *others: Any) -> Tensor:
        assert elastic.active is not None
        asked.append(elastic.active)
        return largest_says(model, elastic, *others)

    monkeypatch.setattr(trainer_module, "largest_says", noted)
    output = train(base, tmp_path / "out", data=data, distill=1.0, **{**SETTINGS, "curriculum": 1.0})
    drawn = [line["ranks"] for line in log(output)]
    smaller = [ranks for ranks in drawn if set(ranks.values()) != {6}]
    assert [dict(config) for config in asked] == smaller
    assert 0 < len(smaller) < len(drawn)


def test_distilling_packed_is_distilling_padded(base: Path, data: str, tmp_path: Path) -> None:
    """With a batch of all examples, which are the same in either: only the order of sums differs."""
    settings = {**SETTINGS, "batch_size": 18, "data": data, "max_steps": 4, "distill": 0.5}
    packed = train(base, tmp_path / "packed", **settings)
    padded = train(base, tmp_path / "padded", packing=False, **settings)
    assert [line["loss"] for line in log(packed)] == pytest.approx([line["loss"] for line in log(padded)], rel=1e-5)
    assert_close(packed, padded)


@pytest.mark.parametrize("settings", [{"ranks": (4,)}, {"sampling": "maximal"}, {"distill": 1.5}])
def test_distil_needs_somebody_to_teach(base: Path, data: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="distill"):
        train(base, tmp_path / "out", data=data, **{**SETTINGS, "distill": 0.5, **settings})
    assert not any(tmp_path.glob("out*"))


@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
def test_a_teacher_that_is_not_trained_is_warned_of(
    base: Path, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, sampling: str
) -> None:
    train(base, tmp_path / "out", data=data, **{**SETTINGS, "max_steps": 1, "distill": 0.5, "sampling": sampling})
    assert ("hardly ever trains" in caplog.text) == (sampling == "uniform")


def test_the_default_is_none() -> None:
    assert TrainConfig(data="arithmetic:train").distill == 0.0
