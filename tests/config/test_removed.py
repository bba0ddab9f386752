"""A key that was removed says since when and what to do instead; records that hold it at its default still load."""

import json
from pathlib import Path

import pytest

import shears
from shears.config import SearchConfig, TrainConfig
from shears.config.fields import StageConfig
from shears.config.resolve import build, load_recipe, stage_values
from shears.errors import InputError
from shears.records.artifacts import as_data
from shears.runs.pipeline import Stage

DATA = {"data": "arithmetic:train"}
CASES: list[tuple[type[StageConfig], str, str, float, str]] = [
    (SearchConfig, "search", "seeds", 3, r"search\.seeds was removed after version 0\.1\.0, got 3: .*max_evaluations"),
    (
        TrainConfig,
        "train",
        "distill",
        0.5,
        r"train\.distill was removed after version 0\.1\.0, got 0\.5: .*leave it out",
    ),
]


@pytest.mark.parametrize(("kind", "section", "key", "value", "message"), CASES)
def test_a_removed_key_says_what_to_do_instead(
    kind: type[StageConfig], section: str, key: str, value: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({section: {**DATA, key: value}}))
    with pytest.raises(InputError, match=message):
        load_recipe(path)
    path.write_text(json.dumps({section: DATA}))
    with pytest.raises(InputError, match=message):
        load_recipe(path, [f"{section}.{key}={value}"])
    for values in (stage_values(section, str(path), [], {key: str(value)}), {**DATA, key: value}):
        with pytest.raises(InputError, match=message):
            build(kind, section, values)


def test_a_removed_keyword_of_a_function_says_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.seeds was removed"):
        shears.search("nowhere", tmp_path / "out", data="arithmetic:validation", seeds=3)
    with pytest.raises(InputError, match=r"train\.distill was removed"):
        shears.train("nowhere", tmp_path / "out", data="arithmetic:train", distill=0.5)


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0"])
def test_a_removed_key_at_its_default_is_ignored(value: object, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train: {{data: x, distill: {value}}}\nsearch: {{data: y, seeds: 0}}\n")
    recipe = load_recipe(path)
    assert recipe.train == TrainConfig(data="x")
    assert recipe.search == SearchConfig(data="y")
    assert build(TrainConfig, "train", {"data": "x", "distill": value}) == recipe.train


@pytest.mark.parametrize(("kind", "section", "key", "value", "message"), CASES)
def test_an_artifact_with_a_removed_key_counts_as_done_if_it_has_its_default(
    kind: type[StageConfig], section: str, key: str, value: float, message: str, tmp_path: Path
) -> None:
    config = as_data(build(kind, section, DATA))
    stage = Stage(section, tmp_path, "record.json", config, dict, lambda: None)
    (tmp_path / "record.json").write_text(json.dumps({"config": {**config, key: kind.REMOVED[key].default}}))
    assert stage.is_done()
    (tmp_path / "record.json").write_text(json.dumps({"config": {**config, key: value}}))
    with pytest.raises(InputError, match=message):
        stage.is_done()


def test_a_removed_key_of_another_section_is_unknown() -> None:
    with pytest.raises(InputError, match=r"unknown key 'train\.seeds'; did you mean 'train\.seed'"):
        build(TrainConfig, "train", {**DATA, "seeds": 3})
