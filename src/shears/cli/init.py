"""The verb init: writes a recipe to begin with into the current folder."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from shears.cli import tables
from shears.cli.options import app, argument, switch
from shears.errors import InputError

FIRST = "quickstart"


@app.command(rich_help_panel="Start")
def init(
    names: Annotated[list[str] | None, argument("NAME", f"Recipes to write (default: {FIRST}).")] = None,
    only_list: Annotated[bool, switch("--list", "Only list the recipes; write nothing.")] = False,
) -> None:
    """Write a recipe to begin with into this folder.

    A recipe holds the settings of every stage; change what you like, then run it. No file is
    overwritten.

    \b
    shears init
    shears run quickstart.yaml
    """
    recipes = shipped_recipes()
    chosen = [] if only_list else list(dict.fromkeys(names or [FIRST]))
    for target in write_recipes(recipes, chosen):
        tables.print_line(f"{target}: {sentence(target)}")
        tables.print_line(f"next: shears run {target}")
    if others := [name for name in recipes if name not in chosen]:
        tables.print_line(f"{'recipes' if only_list else 'other recipes,'} of shears init NAME:")
    for name in others:
        tables.print_line(f"  {name}: {sentence(recipes[name])}")


def shipped_recipes() -> dict[str, Path]:
    """Return the installed recipes by name, the quickstart first."""
    paths = Path(str(files("shears") / "recipes")).rglob("*.yaml")
    return {path.stem: path for path in sorted(paths, key=lambda path: (path.stem != FIRST, path.stem))}


def sentence(recipe: Path) -> str:
    """Return what a recipe is for: the comment in its first line."""
    return recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def write_recipes(recipes: dict[str, Path], names: list[str]) -> list[Path]:
    """Write recipes into the current folder and return their paths.

    InputError, before anything is written, for a name that does not exist or a file that does.
    """
    for name in names:
        if name not in recipes:
            raise InputError(f"the recipe must be one of {', '.join(recipes)}, got {name!r}")
        if Path(f"{name}.yaml").exists():
            raise InputError(
                f"{name}.yaml must not exist yet, and it does; rename it, or run it: shears run {name}.yaml"
            )
    targets = [Path(f"{name}.yaml") for name in names]
    for name, target in zip(names, targets, strict=True):
        with target.open("x", encoding="utf-8") as file:
            file.write(recipes[name].read_text(encoding="utf-8"))
    return targets
