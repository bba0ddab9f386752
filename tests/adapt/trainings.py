"""What each process of test_distributed.py runs: several trainings in a row, since starting takes longer than these."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from shears.adapt.train import train
from shears.errors import InputError
from tests.adapt.test_elastic import IDS, elastic_model, random_configs


def outcome(base: str, output: Path, settings: dict[str, Any]) -> str:
    """Train; return how that ended. Settings may hold others `of_second` for the second process."""
    second = settings.pop("of_second", {})
    if os.environ["RANK"] == "1":
        settings |= second
    try:
        train(base, output, **settings)
    except InputError as error:
        return str(error)
    except SystemExit as exit_:
        return f"exit {exit_.code}"
    return "done"


def fully_sharded() -> str:
    """Shard an elastic model as FSDP2 does, a row with its own ranks a process; compare the gradients with one's."""
    model, elastic = elastic_model()
    whole, elastic_whole = elastic_model()
    mesh, index = init_device_mesh("cpu", (2,)), PartialState().process_index
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    configs = random_configs(elastic.space, 2)
    elastic.activate_rows(configs[index : index + 1])
    model(input_ids=IDS[index : index + 1]).logits.square().sum().backward()
    elastic_whole.activate_rows(configs)
    whole(input_ids=IDS).logits.square().sum().backward()
    for shard, parameter in zip(model.parameters(), whole.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(2 * shard.grad.full_tensor(), parameter.grad)  # FSDP has taken the mean
    return "same gradients"


def main(folder: Path) -> None:
    """Make the trainings that folder/trainings.json names; write how they ended for this process."""
    wanted: dict[str, dict[str, Any]] = json.loads((folder / "trainings.json").read_text())
    outcomes = {name: outcome(str(folder / "base"), folder / name, settings) for name, settings in wanted.items()}
    outcomes["fully_shard"] = fully_sharded()
    (folder / f"outcomes-{os.environ['RANK']}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
