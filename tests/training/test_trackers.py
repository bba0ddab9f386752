"""Trackers are off by default, write beside the artifact, and are refused where they are not installed."""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import TrainConfig
from shears.config.loop import TRACKERS
from shears.config.resolve import build
from shears.errors import InputError
from shears.training.loop import training_arguments
from shears.training.step_log import TENSORBOARD_FOLDER, check_trackers, tracking
from tests.tiny import save_tiny

TINY: dict[str, Any] = {"data": "arithmetic:train", "ranks": (4, 2), "max_steps": 2, "batch_size": 2, "device": "cpu"}


def test_no_tracker_sees_a_training_unless_asked() -> None:
    assert TrainConfig(data="-").report_to == ()
    message = "train.report_to must be of mlflow, tensorboard, trackio, wandb, got 'comet'"
    with pytest.raises(InputError, match=message):
        build(TrainConfig, "train", {"data": "-", "report_to": "comet"})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = f"report_to {name} needs the package {name}, which is not installed; pip install {name}"
    with pytest.raises(InputError, match=f"^{message}$"):
        shears.train("base", tmp_path / "super", data="arithmetic:train", report_to=(name,))
    assert not list(tmp_path.iterdir())


def test_a_folder_named_like_a_tracker_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()  # wandb leaves one of its name in the working folder
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="needs the package trackio"):
        check_trackers(["trackio"])


def test_tensorboard_writes_beside_every_output_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TENSORBOARD_FOLDER, raising=False)
    base = str(save_tiny(tmp_path / "base"))
    for name in ("one", "two"):
        shears.train(base, tmp_path / name, **TINY, report_to=("tensorboard",))
        assert TENSORBOARD_FOLDER not in os.environ
    for name in ("one", "two"):
        assert [path.name.split(".")[0] for path in (tmp_path / f"{name}_tensorboard").rglob("events*")] == ["events"]
        assert not list((tmp_path / name).rglob("events*"))


def test_a_tensorboard_folder_of_the_user_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENSORBOARD_FOLDER, "mine")
    with tracking(["tensorboard"], tmp_path / "one"):
        assert os.environ[TENSORBOARD_FOLDER] == "mine"
    assert os.environ[TENSORBOARD_FOLDER] == "mine"


def test_the_tensorboard_folder_is_unset_when_training_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TENSORBOARD_FOLDER, raising=False)
    seen: list[str | None] = []

    def fail() -> None:
        with tracking(["tensorboard"], tmp_path / "one"):
            seen.append(os.environ.get(TENSORBOARD_FOLDER))
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        fail()
    assert seen == [str(tmp_path / "one_tensorboard")]
    assert TENSORBOARD_FOLDER not in os.environ
    with tracking(["wandb"], tmp_path / "one"):
        assert TENSORBOARD_FOLDER not in os.environ


FAKE = """
import json
from types import SimpleNamespace

__version__ = "1.0"
config, run = {}, None
context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))

def init(*args, **kwargs):
    pass

def log(line, *args, **kwargs):
    with open("LOG", "a") as file:
        file.write(json.dumps(line) + "\\n")

def finish(*args, **kwargs):
    pass
"""


def test_a_tracker_sees_the_loss_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio" / "__init__.py").write_text(FAKE.replace("LOG", str(tmp_path / "log.jsonl")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    config = type("Config", (dict,), {"update": lambda self, other, **_: dict.update(self, other)})()
    monkeypatch.setattr(importlib.import_module("trackio"), "config", config)
    base = str(save_tiny(tmp_path / "base"))
    shears.train(base, tmp_path / "super", **TINY, report_to=("trackio",))
    monkeypatch.delitem(sys.modules, "trackio")
    seen = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (tmp_path / "super" / "training_log.jsonl").read_text().splitlines()]
    assert [line["train/loss"] for line in seen if "train/loss" in line] == pytest.approx(
        [line["loss"] for line in steps], abs=1e-3
    )


FAKE_MLFLOW = """
import json, os
from types import SimpleNamespace

__version__ = "3.0"
log_params = set_tags = set_experiment = end_run = lambda *args, **kwargs: None
active_run = lambda: SimpleNamespace(info=SimpleNamespace(run_id="1"))
is_tracking_uri_set = lambda: False
set_tracking_uri = lambda uri: globals().update(uri=uri)
get_tracking_uri = lambda: uri
uri = None

def log_metrics(metrics, step, **_):
    with open("LOG", "a") as file:
        file.write(json.dumps({**metrics, "step": step, "uri": uri}) + "\\n")
"""


def test_mlflow_sees_losses_and_validations_in_a_database_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow" / "utils").mkdir(parents=True)
    (tmp_path / "mlflow" / "__init__.py").write_text(FAKE_MLFLOW.replace("LOG", str(tmp_path / "log.jsonl")))
    limits = "MAX_PARAM_VAL_LENGTH = 500\nMAX_PARAMS_TAGS_PER_BATCH = 100\n"
    (tmp_path / "mlflow" / "utils" / "validation.py").write_text(limits)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mlflow", "mlflow.utils", "mlflow.utils.validation"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("mlflow.utils.validation")
    settings = {**TINY, "report_to": "mlflow", "validation": "0.01"}
    output = shears.train(str(save_tiny(tmp_path / "base")), tmp_path / "super", **settings)
    for name in ("mlflow", "mlflow.utils", "mlflow.utils.validation"):
        monkeypatch.delitem(sys.modules, name)
    seen = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    assert {line["uri"] for line in seen} == {f"sqlite:///{tmp_path / 'super_mlflow.db'}"}
    assert [line["loss"] for line in seen if "loss" in line] == pytest.approx([s["loss"] for s in steps], abs=1e-3)
    validated = [line["validation_loss"] for line in steps if "validation_loss" in line]
    assert [line["eval_loss"] for line in seen if "eval_loss" in line] == validated
    assert len(validated) == 1


def test_trackers_are_handed_to_the_trainer(tmp_path: Path) -> None:
    settings = TrainConfig(data="-", report_to=("wandb", "trackio"), learning_rate=1e-3, device="cpu")
    arguments = training_arguments(settings, tmp_path, 1)
    assert arguments.report_to == ["wandb", "trackio"]
    assert (arguments.logging_strategy, arguments.logging_steps) == ("steps", 1)
    assert training_arguments(TrainConfig(data="-", learning_rate=1e-3, device="cpu"), tmp_path, 1).report_to == []
