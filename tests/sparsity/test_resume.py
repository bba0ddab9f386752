"""A pruning that was interrupted anywhere ends with the bytes of an undisturbed one, or says why it can't go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shears.errors import InputError
from shears.models.activations import BUDGET
from shears.models.sources import StreamedModel
from shears.models.walk import BlockRun
from shears.records.folders import partial_folder
from shears.sparsity import prune
from shears.sparsity.prune import _Pruner
from shears.sparsity.sparsify import sparsify
from tests.tiny import save_tiny

SMALL: dict[str, Any] = {"num_samples": 6, "sequence_length": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "fitted": {"method": "admm", "allocation": "sensitivity", "reconstruct": "block", "recover_rank": 4},
    "spilled": {"method": "wanda", "recover_rank": 4},
}


class Killed(BaseException):
    """Ends a pruning as SIGKILL does: nothing is tidied."""


@pytest.fixture(autouse=True)
def _saved_behind_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "SECONDS", 0.0)


def killed_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, run: Callable[[], object]) -> None:
    """Run, and end it at the beginning of a call of `owner.name`."""
    real, calls = getattr(owner, name), []

    def fatal(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fatal)
        with pytest.raises(Killed):
            run()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_in_every_block_it_ends_with_the_same_bytes(
    name: str, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=4)
    settings = {"calibration": text, **SMALL, **SETTINGS[name]}
    monkeypatch.setattr(prune, "BUDGET", 0 if name == "spilled" else BUDGET)
    whole = sparsify(base, tmp_path / "sparse", **settings).rename(tmp_path / "whole")
    pruned = list[str]()
    real = _Pruner._prune_measured

    def prune_block(self: _Pruner, block: BlockRun, matrices: Any) -> None:
        pruned.append(block.name)
        real(self, block, matrices)

    monkeypatch.setattr(_Pruner, "_prune_measured", prune_block)

    def run() -> Path:
        return sparsify(base, tmp_path / "sparse", **settings)

    for owner, function, call in (
        (StreamedModel, "keep", 1),  # before anything of the first block is written
        (StreamedModel, "keep", 2),
        (prune, "write_json", 1),  # the state after the second block is torn
        (shutil, "rmtree", 2),  # the state before it is still there
        (StreamedModel, "keep", 2),
    ):
        killed_at(monkeypatch, owner, function, call, run)
        assert partial_folder(tmp_path / "sparse").is_dir()
    run()
    assert contents(tmp_path / "sparse") == contents(whole)
    blocks = [int(block.rpartition(".")[2]) for block in pruned]
    assert blocks[0] == 0
    assert blocks[-1] == 3
    assert blocks.count(0) <= 3


def test_an_interrupted_pruning_is_neither_overwritten_nor_mixed_with_another(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=3)

    def run(**changes: Any) -> Path:
        settings = {"method": "wanda", "calibration": text, **SMALL}
        return sparsify(base, tmp_path / "sparse", **{**settings, **changes})

    killed_at(monkeypatch, StreamedModel, "keep", 3, run)
    with pytest.raises(InputError, match=r"sparsity was 0\.5 and is now 0\.6"):
        run(sparsity=0.6)
    before = contents(partial_folder(tmp_path / "sparse"))
    save_tiny(tmp_path / "base", num_hidden_layers=3, seed=1)
    with pytest.raises(InputError, match=r"continue with the same base_fingerprint, the one in .*sparse\.partial had"):
        run()
    assert contents(partial_folder(tmp_path / "sparse")) == before
    save_tiny(tmp_path / "base", num_hidden_layers=3)
    assert not list(run().rglob("checkpoints"))
