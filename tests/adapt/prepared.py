"""A model with an adapter to train, made as `train` makes it."""

from pathlib import Path

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.train import prepare, read_training_rows, settings_for, training_of
from shears.config import TrainConfig
from shears.models.ref import resolve
from shears.training.fit import Training


def prepared_on(base: Path, settings: TrainConfig) -> tuple[ElasticAdapter, Training]:
    """Return a base with a new adapter, and its training on the examples of the settings."""
    ref = resolve(base)
    decided = settings_for(ref, settings)
    rows = read_training_rows(ref, decided)
    elastic, _ = prepare(ref, decided, rows)
    return elastic, training_of(elastic, rows, decided)
