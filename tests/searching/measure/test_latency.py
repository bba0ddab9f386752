"""Measured latency: of the very sub-adapter in the packed model, as an objective of a search."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shears.errors import InputError
from shears.records.artifacts import read_json
from shears.runtime.native import kernels_available
from shears.searching.measure import latency
from shears.searching.measure.latency import LatencyEvaluator
from shears.searching.stage import search
from tests.searching.adapters import make_adapter, make_super_adapter
from tests.searching.test_stage import SETTINGS

pytestmark = pytest.mark.skipif(not kernels_available(), reason="the C++ extension was not built")


def test_what_is_timed_computes_what_the_activated_ranks_compute() -> None:
    from shears.runtime.native.decoder import NativeBackend

    elastic = make_adapter()
    evaluator = LatencyEvaluator(elastic, "fp32")
    tokens = [3, 1, 4, 1, 5, 9]
    for ranks in (elastic.space.minimal(), elastic.space.heuristic(), elastic.space.maximal()):
        found = NativeBackend(evaluator.source(ranks), 1, max_length=16).logits(tokens)
        elastic.activate(ranks)
        with torch.no_grad():
            expected = elastic.model(input_ids=torch.tensor([tokens])).logits[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert evaluator(ranks)["latency"] > 0


def test_a_search_for_loss_and_latency_has_both_figures(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    folder = search(super_adapter, tmp_path / "out", data=validation, objective="loss,latency", strategy="nsga2",
                    constraint="latency<=10000", **SETTINGS)  # fmt: skip
    result = read_json(folder / "result.json")
    assert all(each["metrics"]["latency"] > 0 for each in result["evaluations"])
    assert set(result["hypervolume"]["reference"]) == {"loss", "latency"}


def test_where_it_cannot_be_measured_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="latency must be left out with a sparse adapter"):
        LatencyEvaluator(make_super_adapter(sparse=True).elastic)
    with pytest.raises(InputError, match="the native decoder covers"):
        LatencyEvaluator(make_adapter("gemma2"))
    monkeypatch.setattr(latency, "kernels_available", lambda: False)
    with pytest.raises(InputError, match=r"latency needs the C\+\+ extension.*take macs"):
        LatencyEvaluator(make_adapter())
