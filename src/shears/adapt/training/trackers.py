"""Experiment trackers of transformers' Trainer: off unless asked for, and asked for only where they are installed."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shears.errors import InputError

FOLDER = "TENSORBOARD_LOGGING_DIR"  # where Trainer's tensorboard callback writes


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError, naming what to install, where a tracker is not installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # wandb's own runs lie in ./wandb
            raise InputError(f"report_to {name} needs the package {name}, which is not installed; pip install {name}")


@contextmanager
def tracking(names: Sequence[str], output: Path) -> Iterator[None]:
    """Let tensorboard write beside the output, not into it, for a while; where the user named a folder, there.

    Event files hold times, and artifacts hold none.
    """
    if "tensorboard" not in names or FOLDER in os.environ:
        yield
        return
    os.environ[FOLDER] = str(output.with_name(f"{output.name}_tensorboard"))
    try:
        yield
    finally:
        os.environ.pop(FOLDER, None)
