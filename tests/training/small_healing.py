"""A tiny dense model, a sparse copy of it, and a text."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny

SETTINGS: dict[str, Any] = {
    "tokens": 16 * 28, "sequence_length": 16, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1,
    "save_steps": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def prune(folder: Path, seed: int = 1) -> None:
    """Set half of every linear of the blocks to zero, in place."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if (parameter.ndim == 2 and "layers" in name) or (".h." in name and parameter.ndim == 2):
            parameter.data[torch.rand(parameter.shape, generator=generator) < 0.5] = 0
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders dense and sparse, and text.txt of 640 characters."""
    folder = tmp_path_factory.mktemp("healing")
    for name in ("dense", "sparse"):
        save_tiny(folder / name, initializer_range=0.2)  # outputs that pruning changes much
    prune(folder / "sparse")
    generator = random.Random(0)
    (folder / "text.txt").write_text("".join(generator.choice("abcdefgh ") for _ in range(640)))
    return folder
