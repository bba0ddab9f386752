"""Pruning, training, search and generation on a CUDA device that is none: no tensor is left on the CPU.

Under `fake_cuda` a tensor of the CPU beside one of the device raises, as it does on a GPU (tests/fake_cuda.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shears.adapt.train import train
from shears.config import EvaluateConfig, SparsifyConfig
from shears.evaluation.run import evaluate
from shears.runtime.transformers_backend import TransformersBackend
from shears.searching.study import search
from shears.sparsity.prune import sparsify_model
from tests.fake_cuda import fake_cuda
from tests.tiny import save_tiny, tiny_model
from tests.training.small_training import SETTINGS, weights

IDS = [torch.arange(24).view(2, 12)]
SMALL = {**SETTINGS, "max_steps": 2, "warmup_steps": 1, "save_steps": 2}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Eight small examples."""
    rows = [{"prompt": f"{a}+{a}" + "1" * a, "completion": f" {a}", "answer": str(a)} for a in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "changes",
    [{"method": "wanda"}, {"method": "sparsegpt"}, {"method": "admm"}, {"method": "wanda", "pattern": "2:4"},
     {"method": "wanda", "allocation": "sensitivity"}, {"method": "magnitude"},
     {"method": "wanda", "recover_rank": 4}, {"method": "wanda", "reconstruct": "block"}],
    ids=str,
)  # fmt: skip
def test_a_model_is_pruned_on_the_device(changes: dict[str, Any]) -> None:
    config = SparsifyConfig(**changes)
    with fake_cuda():
        model = tiny_model(num_hidden_layers=1).to("cuda")  # type: ignore[arg-type]
        report = sparsify_model(model, IDS, config)
        assert all(parameter.device.type == "cuda" for parameter in model.parameters())
    assert report.achieved == 0.5
    reference = tiny_model(num_hidden_layers=1)
    assert sparsify_model(reference, IDS, config).linears.keys() == report.linears.keys()
    for name, parameter in reference.named_parameters():
        same = (parameter == 0) == (model.get_parameter(name).held == 0)
        assert same.float().mean() > 0.95, name  # rounding moves a few zeros


@pytest.mark.parametrize(
    "changes",
    [{}, {"sampling": "uniform"}, {"sparse_adapter": True}, {"recompute": True}],
    ids=str,
)  # fmt: skip
def test_training_on_the_device_ends_with_the_weights_of_the_cpu(
    changes: dict[str, Any], data: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "base", num_hidden_layers=1)
    settings = {**SMALL, "data": data, **changes}
    train(tmp_path / "base", tmp_path / "cpu", **settings)
    with fake_cuda():
        train(tmp_path / "base", tmp_path / "cuda", **{**settings, "device": "cuda"})
    theirs = weights(tmp_path / "cuda")
    for name, tensor in weights(tmp_path / "cpu").items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-4)  # Adam enlarges rounding


def test_search_and_generation_run_on_the_device(data: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", num_hidden_layers=1)
    adapter = train(tmp_path / "base", tmp_path / "super", data=data, **SMALL)
    settings: dict[str, Any] = {"data": data, "max_evaluations": 2, "precision": "fp32"}
    answers = EvaluateConfig(task="number", data=data, max_new_tokens=3, precision="fp32", limit=2)
    with fake_cuda():
        search(adapter, tmp_path / "search", device="cuda", **settings)
        there = evaluate(tmp_path / "base", adapter=str(adapter), **{**answers.model_dump(), "device": "cuda"})
        beams = evaluate(
            tmp_path / "base", adapter=str(adapter), **{**answers.model_dump(), "device": "cuda", "num_beams": 2}
        )
    search(adapter, tmp_path / "on cpu", device="cpu", **settings)
    losses = [
        json.loads((tmp_path / name / "result.json").read_text())["chosen"]["metrics"]["loss"]
        for name in ("search", "on cpu")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    here = evaluate(tmp_path / "base", adapter=str(adapter), **{**answers.model_dump(), "device": "cpu"})
    assert [each["output"] for each in there.records] == [each["output"] for each in here.records]
    assert len(beams.records) == 2


def test_a_backend_generates_on_the_device() -> None:
    with fake_cuda():
        backend = TransformersBackend(tiny_model().to("cuda"))  # type: ignore[arg-type]
        first = backend.prefill(0, [1, 2, 3])
        second = backend.step([0], [4])
    whole = TransformersBackend(tiny_model()).logits([1, 2, 3, 4])
    torch.testing.assert_close(torch.from_numpy(first), torch.from_numpy(whole[2]))
    torch.testing.assert_close(torch.from_numpy(second[0]), torch.from_numpy(whole[3]))
