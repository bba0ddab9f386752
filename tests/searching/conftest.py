"""A tiny super-adapter to search, and validation examples."""

from pathlib import Path

import pytest

from shears.adapt.train import train
from tests.searching.sums import rows
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def super_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train(
        save_tiny(folder / "base"), folder / "adapter", data=rows(folder / "train.jsonl", 0), ranks=(4, 2, 1),
        max_steps=8, batch_size=4, learning_rate=1e-2, device="cpu", precision="fp32",
    )  # fmt: skip


@pytest.fixture
def validation(tmp_path: Path) -> str:
    return rows(tmp_path / "validation.jsonl", 1)
