"""A run asks all of its models in one template."""

import json
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.config.resolve import load_recipe
from tests.end_to_end.recipe import write_recipe

NAMES = ("dense", "sparse", "sparse_sub_adapter")


def recipe_of(folder: Path, *settings: str) -> Recipe:
    """A run on instruction rows that trains two steps and does not search."""
    rows = [{"instruction": f"{n}+1?", "output": str(n + 1), "answer": str(n + 1)} for n in range(12)]
    files = {name: folder / f"{name}_rows.jsonl" for name in ("train", "test")}
    for file, part in zip(files.values(), (rows[:8], rows[8:]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    short = [f"train.data={files['train']}", f"evaluate.data={files['test']}", "train.max_steps=2", "search="]
    return load_recipe(write_recipe(folder), [*short, "evaluate.max_new_tokens=2", *settings])


def measured(run: Path) -> dict[str, dict[str, Any]]:
    """The measurements of a run's models."""
    return {name: json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in NAMES}


@pytest.mark.parametrize(
    ("trained", "named", "words"),
    [
        ("alpaca", None, "### Instruction:\n8+1?"),
        ("alpaca", "question", "Question: 8+1?\nAnswer:"),
        ("question", None, "Question: 8+1?\nAnswer:"),
    ],
)
def test_every_model_is_asked_in_the_template_of_the_training_or_the_recipe(
    trained: str, named: str | None, words: str, tmp_path: Path
) -> None:
    settings = [f"train.template={trained}", *([f"evaluate.template={named}"] if named else [])]
    shears.run(recipe_of(tmp_path, *settings), tmp_path / "run")
    prompts = [[record["prompt"] for record in each["records"]] for each in measured(tmp_path / "run").values()]
    assert prompts[0] == prompts[1] == prompts[2]
    assert words in prompts[0][0]
