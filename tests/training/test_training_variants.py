"""Every way of training resumes without a trace, recomputes the same gradients, and loads as what was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.adapt import train as train_module
from shears.adapt.elastic import ElasticAdapter
from shears.adapt.load import load_super_adapter
from shears.adapt.save import write_super_adapter
from shears.adapt.train import train
from shears.sparsity.stage import sparsify
from shears.training import trainer
from tests.tiny import save_tiny
from tests.training.small_training import SETTINGS, assert_close, assert_same, log, pad_batches, stop_after

IDS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def sparse(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model with its recovery."""
    folder = tmp_path_factory.mktemp("variants")
    save_tiny(folder / "dense")
    settings: dict[str, Any] = {
        "method": "wanda",
        "num_samples": 4,
        "sequence_length": 32,
        "recover_rank": 6,
        "precision": "fp32",
        "device": "cpu",
    }
    return sparsify(folder / "dense", folder / "sparse", calibration=data, **settings)


WAYS: dict[str, dict[str, Any]] = {
    "uniform, padded, split": {"sampling": "uniform", "micro_batch_size": 2, "dropout": 0.1},
    "uniform, blocks recomputed": {"sampling": "uniform", "recompute": "blocks"},
    "recovery, uniform": {"init": "recovery", "sampling": "uniform"},
    "sparse adapter": {"sparse_adapter": True},
    "for int4": {"quantize_aware": "int4"},
    "nested, sparse adapter, recovery": {"sampling": "nested", "sparse_adapter": True, "init": "recovery"},
}


@dataclass(frozen=True)
class Trained:
    """An undisturbed training in one of the ways, and the adapter in memory that it saved."""

    way: str
    settings: dict[str, Any]
    folder: Path
    elastic: ElasticAdapter


@pytest.fixture(scope="module", params=WAYS)
def trained(
    request: pytest.FixtureRequest, sparse: Path, data: str, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    way = str(request.param)
    settings = {**SETTINGS, **WAYS[way], "data": data}
    kept: list[ElasticAdapter] = []
    save = write_super_adapter

    def keep(work: Path, elastic: ElasticAdapter, *rest: Any) -> None:
        kept.append(elastic)
        save(work, elastic, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "write_super_adapter", keep)
        if "padded" in way:
            pad_batches(patch)
        folder = train(sparse, tmp_path_factory.mktemp("trained") / "whole", **settings)
    return Trained(way, settings, folder, kept[0])


def test_an_interruption_leaves_no_trace_in(
    trained: Trained, sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "padded" in trained.way:
        pad_batches(monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(sparse, tmp_path / "stopped", **trained.settings)
    assert_same(trained.folder, train(sparse, tmp_path / "stopped", resume=True, **trained.settings))


def test_what_is_loaded_is_what_was_trained(trained: Trained) -> None:
    loaded = load_super_adapter(trained.folder)
    ours = trained.elastic
    ours.model.eval()
    for choice in ("maximal", "heuristic", "minimal"):
        ours.activate(getattr(ours.space, choice)())
        loaded.elastic.activate(getattr(loaded.elastic.space, choice)())
        torch.testing.assert_close(logits(loaded.model), logits(ours.model), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    """Logits of a fixed batch."""
    result: Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("packing", [True, False])
def test_recomputed_blocks_give_the_same_gradients(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    monkeypatch.setattr(trainer, "PACK_TOKENS", 24)  # two rows or three a batch
    if not packing:
        pad_batches(monkeypatch)
    options = {"max_length": 24, "sampling": "uniform", "dropout": 0.1}
    settings = {**SETTINGS, **options, "data": data}
    plain = train(base, tmp_path / "plain", **settings)
    assert_same(plain, train(base, tmp_path / "recomputed", recompute="blocks", **settings))


def test_packed_training_is_padded_training(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch of all examples, which are the same in either: only the order of sums differs."""
    settings = {**SETTINGS, "batch_size": 18, "data": data, "max_steps": 4}
    packed = train(base, tmp_path / "packed", **settings)
    pad_batches(monkeypatch)
    padded = train(base, tmp_path / "padded", **settings)
    assert [line["loss"] for line in log(packed)] == pytest.approx([line["loss"] for line in log(padded)], rel=1e-5)
    assert_close(packed, padded)
