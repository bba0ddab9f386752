"""The README's Python runs, from top to bottom, on a tiny model; the maps name files that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

import shears
from shears.adapt.prepare import add_lora, build_space
from shears.config import TrainConfig
from tests.end_to_end.recipe import write_recipe
from tests.tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARTIFACTS = {"sparse", "super_adapter", "search", "sub_adapter", "merged", "package", "evaluation"}  # folders of a run
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    save_tiny(tmp_path / "base", max_position_embeddings=1024)
    (tmp_path / "text.txt").write_text("Some text to calibrate on, at least sixteen thousand tokens. " * 300)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(BLOCKS) == 3
    exec(BLOCKS[0].replace('"smollm2-135m"', '"base"'), names)
    assert shears.inspect("sub_adapter", "sparse")["fits"]
    exec(BLOCKS[1], names | _own_model_and_trainer(tmp_path))
    exec(BLOCKS[2], names)
    assert names["model"].peft_config["default"].r == 32


def _own_model_and_trainer(folder: Path) -> dict[str, Any]:
    """Return what a user of the second block has: a model, a PEFT model on it, a Trainer."""
    model = tiny_model()
    space = build_space(model, ("q_proj+k_proj+v_proj", "up_proj"), (32, 24, 16))
    peft_model = add_lora(model, space, TrainConfig(data="-"))
    trainer = Trainer(peft_model, TrainingArguments(str(folder / "trainer"), report_to="none", use_cpu=True))
    return {"model": tiny_model(), "peft_model": peft_model, "trainer": trainer}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_and_folder_that_a_map_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    source = ROOT / "src" / "shears"
    files = {path.name for path in [*source.rglob("*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("docs/*.py")]}
    roots = (source, ROOT / "tests", ROOT / "docs")
    folders = {path.name for root in roots for path in [root, *root.rglob("*")] if path.is_dir()}
    named = set(re.findall(r"\b(\w+\.py)\b", text))
    assert named
    assert named <= files
    inside = set(re.findall(r"\b(\w+)/(?=[ ,)`.]|\n)", text)) - ARTIFACTS
    assert inside
    assert inside <= folders


def test_the_map_is_short() -> None:
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    assert len(lines) <= 150


def test_every_verb_has_an_example_in_the_readme_or_the_docs() -> None:
    from shears.cli import application

    commands = application().registered_commands
    names = [command.name or command.callback.__name__ for command in commands if command.callback]
    assert len(names) >= 10
    text = README + "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert [name for name in names if f"    shears {name} " not in text] == []


def test_the_verbs_without_a_recipe_are_those_the_readme_names() -> None:
    import typer

    from shears.cli import application

    group: Any = typer.main.get_command(application())
    without = {
        name for name, verb in group.commands.items() if "--config" not in {o for p in verb.params for o in p.opts}
    }
    words = README.split("Every verb that is a stage")[1].split("recipe keys are")[0]
    assert {name for name in group.commands if f"`{name}`" in words} == without
