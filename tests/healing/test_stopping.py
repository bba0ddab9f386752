"""A healing that is stopped goes on from a checkpoint by time, or by the signal, with the same bits."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from shears.errors import Interrupted
from shears.healing import stage as heal_module
from shears.healing.stage import heal
from shears.training.loop import fit
from tests.healing.conftest import SETTINGS
from tests.training.test_stopping import Clock, after_step, hashes, steps_kept

RARELY = {**SETTINGS, "save_steps": 50}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_healing_stops_and_resumes_likewise(
    step: int,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**RARELY, "teacher": str(models / "dense"), "data": str(models / "text.txt")}
    undisturbed = heal(models / "sparse", tmp_path / "out", **settings)
    undisturbed.rename(tmp_path / "undisturbed")
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(heal_module, "fit", partial(fit, clock=clock))
        after_step(step, patch, lambda: setattr(clock, "seconds", 120))
        after_step(step + 1, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            heal(models / "sparse", tmp_path / "out", **settings)
    assert steps_kept(tmp_path / "out") == [step, step + 1]
    resumed = heal(models / "sparse", tmp_path / "out", resume=True, **settings)
    assert hashes(resumed) == hashes(tmp_path / "undisturbed")
