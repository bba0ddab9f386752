"""What lies in the place of a stage's artifact is taken for done, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.config.fields import TemplateName
from shears.config.resolve import load_recipe
from shears.data.calibration import calibration_batches, text_template
from shears.errors import InputError
from shears.runs.plan import plan
from shears.runs.stages import run_folder, stages_of
from tests.end_to_end.recipe import write_recipe
from tests.export.made import half_sparse_with_merge
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": {"sparsity": 0.4}}, r"sparsify\.sparsity was 0\.4 and is now 0\.5"),
        ({"config": ["sparsity"]}, "its config is"),
        ({}, "sparsity.json cannot be read: it lacks 'config'"),
        ([], "must be a JSON object"),
    ],
)
def test_a_record_of_another_configuration_or_a_damaged_one_is_one_line(
    content: dict[str, Any] | list[Any], message: str, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    (tmp_path / "run" / "sparse").mkdir(parents=True)
    (tmp_path / "run" / "sparse" / "sparsity.json").write_text(json.dumps(content))
    for start in (plan, shears.run):
        with pytest.raises(InputError, match=message) as caught:
            start(recipe, tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_a_run_goes_into_a_folder_and_nowhere_else(tmp_path: Path) -> None:
    """An empty name, as of a shell's variable that is not set, is not that of the recipe."""
    (tmp_path / "file").touch()
    recipe = Recipe(model="any", output=str(tmp_path / "run"))
    with pytest.raises(InputError, match="must be a folder, got the file .*file"):
        run_folder(recipe, tmp_path / "file")
    with pytest.raises(InputError, match="must have a model and an output folder"):
        run_folder(recipe, "")
    assert run_folder(recipe) == tmp_path / "run"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.columns={prompt: question}", r"must name columns of .*train.jsonl \(prompt, completion, answer\)"),
        ("search.columns={completion: reply}", "must name columns of .*validation.jsonl .* got completion=reply"),
        ("evaluate.columns={prompt: promt}", "must name columns of .*test.jsonl"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_told_before_any_work(setting: str, message: str, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), [setting])
    with pytest.raises(InputError, match=message):
        shears.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["package", "gguf"])
def test_a_run_without_training_packs_and_measures_its_sparse_model(tmp_path: Path, form: str) -> None:
    half_sparse_with_merge(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("abcdefgh " * 20)
    measured = {"task": "perplexity", "data": str(tmp_path / "text.txt"), "sequence_length": 16, "limit": 2}
    recipe = Recipe.model_validate(
        {
            "model": str(tmp_path / "dense"), "output": str(tmp_path / "run"), "sparsify": {"method": "magnitude"},
            "export": {"format": form, "dtype": "int4"}, "evaluate": {**measured, "device": "cpu"},
        }
    )  # fmt: skip
    assert [stage.name for stage in shears.plan(recipe).stages] == ["sparsify", "export", "evaluate"]
    summary = shears.run(recipe)
    assert [row["name"] for row in summary["models"]] == ["dense", "sparse", form]
    record = json.loads((tmp_path / "run" / form / f"{form}.json").read_text())
    assert {"package": record.get("values"), "gguf": record["config"]["dtype"]}[form] == "int4"
    assert {stage.state for stage in shears.plan(recipe).stages} == {"done"}


@pytest.mark.parametrize(
    ("template", "changes", "read_as"),
    [
        ("chat", [], "chat"),
        ("question", [], "question"),
        ("question", ["train=null", "search=null", "evaluate=null"], None),
        ("question", ["train=null", "search=null", "evaluate.template=alpaca"], "alpaca"),
    ],
)
def test_instructions_are_calibrated_and_healed_on_as_the_run_trains(
    tmp_path: Path, template: str, changes: list[str], read_as: TemplateName | None
) -> None:
    rows = [{"instruction": f"say {number}", "output": "x" * 30} for number in range(12)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = write_recipe(tmp_path)
    healing = ["heal={}", f"heal.data={data}", "heal.tokens=64", "heal.sequence_length=16", "heal.batch_size=2"]
    settings = [f"sparsify.calibration={data}", f"train.template={template}", *healing, "heal.warmup_steps=0", *changes]
    recipe = load_recipe(path, settings)
    stages = stages_of(recipe, tmp_path / "run")
    stages[0].make()
    record = json.loads((tmp_path / "run" / "sparse" / "sparsity.json").read_text())
    tokenizer = tiny_tokenizer()
    drawn = calibration_batches(str(data), tokenizer, 4, 64, 4, 0, trained=read_as)
    assert record["calibration_fingerprint"] == drawn.fingerprint
    assert stages[1].config["template"] == (None if read_as is None else text_template(read_as, tokenizer))
