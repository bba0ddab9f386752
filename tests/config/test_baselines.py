"""Baselines are a key of recipes: named in a list or a mapping, and no key of the verb that measures one model."""

from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.config.resolve import load_recipe, stage_values
from shears.errors import InputError

RECIPE = "model: any\ntrain: {data: arithmetic:train}\nevaluate: {task: number, data: arithmetic:test}\n"


def evaluated(folder: Path, value: str) -> Any:
    """The evaluate section of a recipe whose baselines are `value`, as --set takes it."""
    (folder / "recipe.yaml").write_text(RECIPE)
    return load_recipe(folder / "recipe.yaml", [f"evaluate.baselines={value}"]).evaluate


@pytest.mark.parametrize(
    ("value", "rates"),
    [
        ("[dense-lora]", {"dense-lora": None}),
        ("sparse-lora, dense-lora", {"sparse-lora": None, "dense-lora": None}),
        ("{dense-lora: {learning_rate: 1e-4}, sparse-lora: }", {"dense-lora": 1e-4, "sparse-lora": None}),
        ("", {}),
    ],
)
def test_baselines_are_a_list_or_a_mapping(value: str, rates: dict[str, float | None], tmp_path: Path) -> None:
    section = evaluated(tmp_path, value)
    assert {name: baseline.learning_rate for name, baseline in section.baselines.items()} == rates
    again = Recipe.model_validate(Recipe(model="any", evaluate=section).model_dump(mode="json")).evaluate
    assert again == section


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[dense]", r"evaluate\.baselines must be of dense-lora, sparse-lora, got 'dense'"),
        ("3", r"evaluate\.baselines must be of dense-lora, sparse-lora, got '3'"),
        ("{dense-lora: {learning_rte: 1}}", r"did you mean 'evaluate\.baselines\.dense-lora\.learning_rate'"),
        ("{dense-lora: {learning_rate: 0}}", r"evaluate\.baselines\.dense-lora\.learning_rate must be greater than 0"),
    ],
)
def test_other_baselines_are_refused_in_one_line(value: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluated(tmp_path, value)
    assert "\n" not in str(caught.value)


def test_the_verb_evaluate_takes_the_rest_of_a_recipes_section_and_no_baselines(tmp_path: Path) -> None:
    section = evaluated(tmp_path, "[dense-lora]")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("data: arithmetic:test", "data: arithmetic:test, baselines: [dense-lora]"))
    expected = {"task": "number", "data": "arithmetic:test"}
    assert stage_values("evaluate", str(recipe), [], {}) == expected
    assert section.measurement == section.measurement.model_validate(expected)
    with pytest.raises(InputError, match=r"evaluate\.baselines is for recipes of shears run, which trains them"):
        shears.evaluate("nowhere/at/all", baselines=["dense-lora"], **expected)
