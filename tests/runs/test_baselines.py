"""A run trains the baselines that its recipe names with its own budget, and compares its last model with them."""

import json
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.config.resolve import load_recipe
from shears.errors import InputError
from shears.records.artifacts import as_data
from shears.runs.plan import plan
from shears.runs.stages import baseline_configs
from tests.end_to_end.recipe import write_recipe

SMALL = ["search.strategy=heuristic", "train.max_steps=4", "train.warmup_steps=1"]
BOTH = "baselines=dense-lora,sparse-lora"
OF_PLAIN_LORA = {"ranks": [6], "sampling": "uniform"}


def recipe_of(folder: Path, *settings: str) -> Recipe:
    return load_recipe(folder / "recipe.yaml", [*SMALL, *settings])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe whose run has both baselines; it was run without them before."""
    folder = tmp_path_factory.mktemp("baselines")
    write_recipe(folder)
    shears.run(recipe_of(folder), folder / "run")
    shears.run(recipe_of(folder, BOTH), folder / "run")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"init": "recovery", "epochs": 2.0, "alpha": 12.0, "seed": 3, "dropout": 0.1},
        {"sparse_adapter": True, "batch_size": 4},
        {"quantize_aware": "int4"},
        {"sampling": "uniform", "groups": ("up_proj",)},
    ],
)
def test_a_baseline_has_the_budget_of_the_run_and_one_rank(settings: dict[str, Any]) -> None:
    train = {"data": "arithmetic:train", "ranks": (6, 4, 2), **settings}
    recipe = Recipe.model_validate({"model": "any", "train": train, "baselines": ["dense-lora", "sparse-lora"]})
    assert recipe.train is not None
    own, configs = as_data(recipe.train), baseline_configs(recipe)
    assert as_data(configs["sparse-lora"]) == {**own, **OF_PLAIN_LORA}
    of_dense = {
        "init": "lora",
        "sparse_adapter": False,
        "quantize_aware": "none",
    }
    assert as_data(configs["dense-lora"]) == {**own, **OF_PLAIN_LORA, **of_dense}


def test_baselines_are_arms_of_the_run_before_its_last_model(done: Path) -> None:
    summary = json.loads((done / "run" / "evaluation.json").read_text())
    names = [row["name"] for row in summary["models"]]
    assert names == ["dense", "sparse", "dense-lora", "sparse-lora", "sparse + sub-adapter"]
    assert [round(row["sparsity"], 2) for row in summary["models"]] == [0.0, 0.5, 0.0, 0.5, 0.5]
    sizes = [row["adapter_parameters"] for row in summary["models"]]
    assert sizes[2] == sizes[3] > sizes[4] > 0
    lead = summary["lead"]
    assert (lead["name"], lead["against"], lead["untrained"]) == ("sparse + sub-adapter", "dense-lora", False)
    values = {row["name"]: row["value"] for row in summary["models"]}
    assert lead["difference"]["value"] == pytest.approx(values["sparse + sub-adapter"] - values["dense-lora"])
    assert lead["difference"]["n"] == 12


def test_a_baseline_is_what_train_makes_of_its_settings(done: Path, tmp_path: Path) -> None:
    record = json.loads((done / "run" / "baselines" / "dense_lora" / "search_space.json").read_text())
    assert (record["num_steps"], record["max_rank"]) == (4, 6)
    alone = shears.train(done / "base", tmp_path / "alone", **record["config"])
    made = done / "run" / "baselines" / "dense_lora"
    for name in ("adapter_model.safetensors", "search_space.json"):
        assert (alone / name).read_bytes() == (made / name).read_bytes()


def test_without_its_baseline_a_run_is_compared_with_the_dense_model_named_as_untrained(done: Path) -> None:
    lead = shears.run(recipe_of(done), done / "run")["lead"]
    assert (lead["against"], lead["untrained"]) == ("dense", True)
    stages = plan(recipe_of(done, BOTH), done / "run").stages
    assert {stage.name: stage.state for stage in stages}["evaluate"] == "to do"  # their figures are not in the summary
    shears.run(recipe_of(done, BOTH), done / "run")
    assert {stage.state for stage in plan(recipe_of(done, BOTH), done / "run").stages} == {"done"}


def test_baselines_without_a_training_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["search=", "train=", "baselines=dense-lora"])
    for start in (plan, shears.run):
        with pytest.raises(InputError, match="must train to have baselines.*`train:` section"):
            start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
