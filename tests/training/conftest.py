"""A small base and its training data."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shears.adapt.train import train
from shears.records.artifacts import weights_fingerprint
from tests.tiny import save_tiny
from tests.training.small_healing import models  # noqa: F401  # a fixture


def write_data(folder: Path) -> str:
    """Write 18 small examples of unequal length: an epoch is five steps of four, the last of two."""
    generator = random.Random(0)
    rows = [{"prompt": f"{a}+" + "1" * generator.randint(1, 9), "completion": f" {a}"} for a in range(18)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_base(folder: Path) -> Path:
    """Save a tiny model, half of whose MLP weights are zero."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "base"))
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.data[torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    model.save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Examples for all tests, which only read them."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base for all tests, which only read it."""
    folder = save_base(tmp_path_factory.mktemp("base"))
    before = weights_fingerprint(folder)
    yield folder
    assert weights_fingerprint(folder) == before


@dataclass(frozen=True)
class Undisturbed:
    """Trains with some settings, once for all tests, which only read the folders. Each is called `out`.

    A test calls it before it patches anything.
    """

    base: Path
    data: str
    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    def __call__(self, **settings: Any) -> Path:
        key = repr(sorted(settings.items()))
        if key not in self.made:
            output = self.folder / str(len(self.made)) / "out"
            self.made[key] = train(self.base, output, data=self.data, **settings)
        return self.made[key]


@pytest.fixture(scope="session")
def undisturbed(base: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(base, data, tmp_path_factory.mktemp("undisturbed"))
