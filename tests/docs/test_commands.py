"""Code in README.md and docs/ is what the code takes: commands parse, recipes are valid, Python compiles.

Nothing is run. `make docs` calls this file, too.
"""

import ast
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from shears.cli import application
from shears.cli.options import USAGE_ERROR
from shears.config import Recipe
from shears.config.resolve import build, load_recipe, override, parse_yaml
from shears.errors import InputError
from tests.docs.blocks import Block, blocks_of, files_of, shears_calls

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE: dict[str, Any] = {  # the keys that must be given; a page may show a part of a recipe
    "model": "base", "output": "run", "train": {"data": "a"}, "search": {"data": "b"},
    "evaluate": {"task": "equation", "data": "c"},
}  # fmt: skip
GROUP: Any = typer.main.get_command(application())


def check_call(words: list[str], whole: Path) -> None:
    """Parse a call as the command line does, values too, without running it; InputError or a usage error if wrong.

    Files that a reader has are not here: `whole` takes the place of recipes.
    """
    with GROUP.make_context("shears", list(words)) as ctx:
        rest = [*ctx._protected_args, *ctx.args]
        if not rest:
            return
        name, command, rest = GROUP.resolve_command(ctx, rest)
        with command.make_context(name, rest, parent=ctx) as verb:
            given = verb.params
            if "config" in given:
                given["config"] = given["config"] and str(whole)
            if name == "run":
                load_recipe(_recipe_of(given["recipe"]) or whole, given["set_"] or [])
            if check := getattr(command.callback, "check", None):
                check(given)


def _recipe_of(name: str) -> Path | None:
    return next((path for path in (ROOT / name, ROOT / "recipes" / name) if path.is_file()), None)


def check_recipe(content: Mapping[str, Any]) -> None:
    """Build the configuration of a recipe, or of a part of one; InputError if it is wrong."""
    parts = {key: {**WHOLE[key], **value} if isinstance(value, dict) and key in WHOLE else value
             for key, value in override(content, []).items()}  # fmt: skip
    always = {key for key in ("sparsify", "export") if parts.get(key, ...) is None}
    build(Recipe, "", {**WHOLE, **parts, **{key: {} for key in always}})


def check_python(text: str) -> None:
    """Compile Python, and find what it imports from shears."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shears":
            module = import_module(node.module or "")
            assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)


def check_block(block: Block, whole: Path) -> None:
    """Check a code block by its language; an indented one may be a recipe or shell commands."""
    if block.language == "python":
        check_python(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif recipe := recipe_in(block):
        check_recipe(recipe)
    elif block.language in ("", "sh", "bash", "console", "text"):
        for name, text in files_of(block).items():
            if name.endswith(".yaml"):
                check_recipe(parse_yaml(text))
        for words in shears_calls(block):
            check_call(words, whole)


def recipe_in(block: Block) -> dict[str, Any]:
    """Return the mapping that a block of YAML holds if one of its keys is a recipe's; else an empty one."""
    if block.language not in ("", "yaml"):
        return {}
    try:
        content = parse_yaml(block.text)
    except (yaml.YAMLError, ValueError):
        assert block.language == "", block.text
        return {}
    return content if isinstance(content, dict) and content.keys() & Recipe.model_fields.keys() else {}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    return path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_recipes_and_python_of_a_page_are_valid(page: Path, whole: Path) -> None:
    mistakes = []
    for block in blocks_of(page.read_text()):
        try:
            check_block(block, whole)
        except (InputError, SyntaxError, ValueError, AssertionError, USAGE_ERROR) as error:
            mistakes.append(f"{getattr(error, 'message', error)}, in:\n{block.text}")
    assert mistakes == []


def test_wrong_commands_recipes_and_python_are_found(whole: Path) -> None:
    for call in ("prune a b", "sparsify a b --sparsitie 0.5", "sparsify a b --sparsity 50", "inspect a b c"):
        with pytest.raises((InputError, USAGE_ERROR)):
            check_block(Block("sh", f"echo | shears {call} | cat  # of a page"), whole)
    with pytest.raises(InputError, match=r"train\.alhpa"):
        check_block(Block("yaml", "train: {alhpa: 3}"), whole)
    with pytest.raises(InputError, match=r"sparsify\.sparsity"):
        check_block(Block("sh", "cat > r.yaml <<'EOF'\nsparsify: {sparsity: 2}\nEOF\n"), whole)
    with pytest.raises(SyntaxError):
        check_block(Block("python", "import shears as"), whole)
    with pytest.raises(AssertionError, match="sparsen"):
        check_block(Block("python", "from shears import sparsen"), whole)
