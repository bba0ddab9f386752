"""A model with an adapter to train, made as `train` makes it."""

from pathlib import Path

from shears.adapt import prepare
from shears.config import TrainConfig
from shears.models.ref import resolve


def prepared_on(base: Path, settings: TrainConfig) -> prepare.PreparedAdapter:
    """Return a base with a new adapter, and the examples of the settings."""
    ref = resolve(base)
    decided = prepare.settings_for(ref, settings)
    return prepare.prepare(ref, decided, prepare.read_training_rows(ref, decided))
