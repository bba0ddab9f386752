"""A record of another version is read on the keys that this version has; a user's unknown key stays an error."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shears
from shears.config import Recipe, SearchConfig, SparsifyConfig, TrainConfig
from shears.config.fields import StageConfig
from shears.config.resolve import build, load_recipe, section_class
from shears.errors import InputError
from shears.records.artifacts import as_data
from shears.runs.stages import Stage

DATA = {"data": "arithmetic:train"}
SECTIONS = ["sparsify", "heal", "train", "search", "export", "evaluate"]


def recorded_stage(folder: Path, section: str, recorded: dict[str, object]) -> Stage:
    """Return a finished stage of a run whose record holds these keys, with the default configuration."""
    (folder / "record.json").write_text(json.dumps({"config": recorded}))
    kind = section_class(Recipe, [section])
    return Stage(section, folder, "record.json", as_data(build(kind, section, _needed(kind))), dict, lambda: None)


def _needed(kind: type[StageConfig]) -> dict[str, str]:
    given = {**DATA, "task": "perplexity"}
    return {
        key: value for key, value in given.items() if key in kind.model_fields and kind.model_fields[key].is_required()
    }


@given(st.data(), st.dictionaries(st.text().map("{}?".format), st.integers(), max_size=3))
@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_ignored_and_missing_ones_count_as_their_defaults(
    section: str, data: st.DataObject, unknown: dict[str, int]
) -> None:
    kind = section_class(Recipe, [section])
    config = as_data(build(kind, section, _needed(kind)))
    kept = data.draw(st.sets(st.sampled_from(sorted(config.keys() - _needed(kind).keys()))))
    recorded = {**unknown, **_needed(kind), **{key: config[key] for key in kept}}
    assert as_data(build(kind, section, kind.of_record(recorded))) == config


def test_a_stage_with_an_unknown_key_in_its_record_counts_as_done(tmp_path: Path) -> None:
    assert recorded_stage(tmp_path, "train", {**DATA, "distill": 0.5}).is_done()
    with pytest.raises(InputError, match=r"different configuration: train\.alpha was 3\.0 and is now None"):
        recorded_stage(tmp_path, "train", {**DATA, "distill": 0.5, "alpha": 3}).is_done()


@pytest.mark.parametrize(
    ("section", "key"),
    [("train", "sampling"), ("sparsify", "method"), ("sparsify", "pattern"), ("sparsify", "allocation")],
)
def test_a_recorded_value_that_this_version_does_not_have_is_one_clear_line(
    section: str, key: str, tmp_path: Path
) -> None:
    stage = recorded_stage(tmp_path, section, {**_needed(section_class(Recipe, [section])), key: "bygone"})
    with pytest.raises(InputError, match="with an option that this version does not have.*got 'bygone'") as error:
        stage.is_done()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "section", "key"), [(SparsifyConfig, "sparsify", "sed"), (SearchConfig, "search", "sed"),
                                 (TrainConfig, "train", "sed")]
)  # fmt: skip
def test_an_unknown_key_of_a_user_is_an_error(kind: type[StageConfig], section: str, key: str, tmp_path: Path) -> None:
    message = rf"unknown key '{section}\.sed'; did you mean '{section}\.seed'\?"
    (tmp_path / "recipe.yaml").write_text(json.dumps({section: {**_needed(kind), key: 3}}))
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match=message):
        getattr(shears, section)("nowhere", tmp_path / "out", **_needed(kind), sed=3)
