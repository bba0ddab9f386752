"""The learning rate follows its closed form, and weight decay is AdamW's."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shears.adapt.prepare import prepare
from shears.adapt.train import train
from shears.config import TrainConfig
from shears.models.ref import resolve
from tests.training.small_training import SETTINGS, log, weights

PEAK, WARMUP, STEPS = 1e-2, 2, 7
AFTER_WARMUP: dict[str, Callable[[float], float]] = {  # of the share of the steps after warmup that are done
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}


@pytest.mark.parametrize("name", AFTER_WARMUP)
def test_the_learning_rate_has_its_closed_form(base: Path, data: str, tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {} if name == "linear" else {"scheduler": name}
    output = train(base, tmp_path / "out", data=data, **SETTINGS, **changes)
    expected = [
        PEAK * (step / WARMUP if step < WARMUP else AFTER_WARMUP[name]((step - WARMUP) / (STEPS - WARMUP)))
        for step in range(STEPS)
    ]
    assert [line["learning_rate"] for line in log(output)] == pytest.approx(expected)


def test_weight_decay_shrinks_by_a_share_of_the_learning_rate(base: Path, data: str, tmp_path: Path) -> None:
    """AdamW's decay is apart from the gradient (Loshchilov and Hutter, 2019): w <- w - rate decay w - ... ."""
    settings = {
        **SETTINGS,
        "max_steps": 1,
        "warmup_steps": 0,
        "scheduler": "constant",
        "data": data,
        "sampling": "uniform",
    }
    before = prepare(resolve(base), TrainConfig(**settings)).model.state_dict()
    plain = weights(train(base, tmp_path / "plain", **settings))
    decayed = weights(train(base, tmp_path / "decayed", weight_decay=0.5, **settings))
    for name, tensor in plain.items():
        start = before[name.replace(".weight", ".default.weight")]
        torch.testing.assert_close(tensor - decayed[name], PEAK * 0.5 * start, rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(tensor, decayed[name]) for name, tensor in plain.items())
