"""Every list of names in config/ equals the keys of the registry that implements them."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, get_args

import pytest

from shears.checkpoints.packed_layout import FORMAT_DTYPES
from shears.config import EvaluateConfig, ExportConfig, Recipe, TrainConfig
from shears.config.evaluate_options import ANSWER_FORMS, WRITTEN_TASKS, ExampleTask, PaperTask, TaskName
from shears.config.export_options import FORMATS
from shears.config.fields import CHAT, DtypeName
from shears.config.resolve import section_class
from shears.config.sparsify_options import METHODS
from shears.data.templates import TEMPLATES
from shears.evaluation.tasks import PAPER_TASKS
from shears.models.devices import DTYPES


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (TaskName, [*PAPER_TASKS, *WRITTEN_TASKS, "choices", "perplexity", "harness"]),
        (ExampleTask, ["choices", *WRITTEN_TASKS]),
        (PaperTask, PAPER_TASKS),
        (get_args(EvaluateConfig.model_fields["template"].annotation)[0], [*TEMPLATES, CHAT]),
        (TrainConfig.model_fields["template"].annotation, [*TEMPLATES, CHAT]),
        (DtypeName, ["auto", *DTYPES]),
        (ExportConfig.model_fields["dtype"].annotation, ["auto", *FORMAT_DTYPES]),
    ],
    ids=["tasks", "examples", "paper", "prompts", "templates", "dtypes", "formats"],
)
def test_names_are_those_of_the_registry(names: Any, registry: Iterable[str]) -> None:
    assert sorted(get_args(names)) == sorted(registry)


def test_a_recipe_has_at_most_105_keys() -> None:
    """Every key is a flag, a page and a test: one that is added needs one that goes."""
    alone = {"model", "output", "baselines"}
    sections = [section_class(Recipe, [name]) for name in Recipe.model_fields.keys() - alone]
    assert len(alone) + sum(len(section.model_fields) for section in sections) <= 105


def test_every_task_with_labels_names_them() -> None:
    labelled = {name for name, task in PAPER_TASKS.items() if "labels" in task}
    assert {task for task, form in ANSWER_FORMS.items() if form in ("label", "letter")} == labelled


FUNCTIONS = [
    *(method.prune for method in METHODS.values()),
    *(form.writer for form in FORMATS.values()),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_entry_of_a_registry_names_a_function_that_exists(function: str) -> None:
    module, _, name = function.partition(":")
    assert callable(getattr(import_module(module), name))
