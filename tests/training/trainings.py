"""What each process of test_distributed.py runs: several trainings in a row."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from shears.adapt.train import train
from shears.errors import InputError
from shears.training.processes import shard_frozen
from tests.adapt.test_elastic import IDS, elastic_model, random_configs
from tests.training.small_training import pad_batches


def outcome(base: str, output: Path, settings: dict[str, Any]) -> str:
    """Train; return how that ended. Settings may hold others `of_second` for the second process."""
    second = settings.pop("of_second", {})
    if os.environ["RANK"] == "1":
        settings |= second
    try:
        with pytest.MonkeyPatch.context() as patched:
            if settings.pop("padded", False):
                pad_batches(patched)
            train(base, output, **settings)
    except InputError as error:
        return str(error)
    except SystemExit as exit_:
        return f"exit {exit_.code}"
    return "done"


def sharded() -> str:
    """Shard an elastic model, a row with its own ranks a process; compare with a whole one, and weigh the parts."""
    model, elastic = elastic_model()
    whole, elastic_whole = elastic_model()
    index = PartialState().process_index
    shard_frozen(model, torch.device("cpu"))
    configs = random_configs(elastic.space, 2)
    elastic.activate(configs[index])
    model(input_ids=IDS[index : index + 1]).logits.square().sum().backward()
    for row, config in enumerate(configs):
        elastic_whole.activate(config)
        whole(input_ids=IDS[row : row + 1]).logits.square().sum().backward()
    for part, parameter in zip(model.parameters(), whole.parameters(), strict=True):
        if parameter.requires_grad:
            torch.distributed.all_reduce(part.grad)
            torch.testing.assert_close(part.grad, parameter.grad)
        else:
            assert isinstance(part, DTensor)
            torch.testing.assert_close(part.full_tensor(), parameter, rtol=0, atol=0)
    held = sum(part.to_local().numel() for part in model.parameters() if isinstance(part, DTensor))
    frozen = sum(parameter.numel() for parameter in whole.parameters() if not parameter.requires_grad)
    assert held <= 0.51 * frozen
    return "same gradients, half of the weights"


def main(folder: Path) -> None:
    """Make the trainings that folder/trainings.json names; write how they ended for this process."""
    wanted: dict[str, dict[str, Any]] = json.loads((folder / "trainings.json").read_text())
    outcomes = {name: outcome(str(folder / "base"), folder / name, settings) for name, settings in wanted.items()}
    outcomes["sharded"] = sharded()
    (folder / f"outcomes-{os.environ['RANK']}.json").write_text(json.dumps(outcomes))
