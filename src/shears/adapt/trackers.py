"""Experiment trackers of transformers' Trainer: off unless asked for, and asked for only where they are installed."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from shears.errors import InputError

FOLDER = "TENSORBOARD_LOGGING_DIR"  # where Trainer's tensorboard callback writes


def prepare_trackers(names: Sequence[str], output: Path) -> None:
    """Check that the trackers are installed, and let tensorboard write beside the output, not into it.

    Event files hold times, and artifacts hold none. InputError naming what to install.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to {name} needs the package {name}, which is not installed; pip install {name}")
    if "tensorboard" in names:
        os.environ.setdefault(FOLDER, str(output.with_name(f"{output.name}_tensorboard")))
