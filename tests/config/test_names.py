"""Every list of names in config/ equals the keys of the registry that implements them."""

from collections.abc import Iterable
from typing import Any, get_args

import pytest

from shears.adapt.sampling import STRATEGIES as SAMPLINGS
from shears.checkpoints.packed.layout import FORMAT_DTYPES
from shears.config import ExportConfig, TrainConfig
from shears.config.evaluate import ANSWER_FORMS, PaperTask, TaskName
from shears.config.export import FormatName
from shears.config.fields import DtypeName
from shears.config.search import OWNERS, StrategyName, StrategyOptions
from shears.config.sparsify import MethodName
from shears.config.train import SamplingName
from shears.evaluation.tasks.registry import ACCURACY_TASKS
from shears.export.peft import FORMATS
from shears.models.devices import DTYPES
from shears.models.quantization import BITS
from shears.searching.strategies.registry import STRATEGIES
from shears.sparsity.methods.registry import METHODS

WHOLE_MODELS = ("merged", "merged-sparse", "package")  # export formats that are not adapters


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (MethodName, METHODS),
        (StrategyName, STRATEGIES),
        (SamplingName, SAMPLINGS),
        (FormatName, [*FORMATS, *WHOLE_MODELS]),
        (TaskName, [*ACCURACY_TASKS, "perplexity", "harness"]),
        (PaperTask, ANSWER_FORMS),
        (DtypeName, ["auto", *DTYPES]),
        (TrainConfig.model_fields["quantize"].annotation, ["none", *BITS]),
        (ExportConfig.model_fields["values"].annotation, ["auto", *FORMAT_DTYPES]),
    ],
    ids=["methods", "strategies", "samplings", "formats", "tasks", "paper", "dtypes", "quantize", "values"],
)
def test_names_are_those_of_the_registry(names: Any, registry: Iterable[str]) -> None:
    assert sorted(get_args(names)) == sorted(registry)


def test_every_option_of_a_strategy_has_an_owner() -> None:
    assert OWNERS.keys() == StrategyOptions.model_fields.keys()
    assert {owner for owners in OWNERS.values() for owner in owners} <= set(get_args(StrategyName))
