"""A small base and its training data."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny


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


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path)
