"""The site: made pages hold every verb, option and key; figures are drawn anew; tables are narrow; messages exist."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from shears.cli import application
from shears.config import Recipe
from shears.config.fields import StageConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WIDTH = 100  # columns


def module_of(path: Path) -> ModuleType:
    """Import a file of docs/."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The pages that docs/hooks.py makes, by path."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pages: dict[str, str] = module_of(DOCS / "hooks.py").made_pages()
    return pages


def test_every_verb_has_a_page_with_every_option(made: dict[str, str]) -> None:
    group: Any = typer.main.get_command(application())
    for name, verb in group.commands.items():
        page = made[f"reference/verbs/{name}.md"]
        for parameter in verb.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help", "config", "set_"):
                assert (f"`{parameter.opts[0]}`" in page) != bool(parameter.hidden), (name, parameter.name)


def test_every_key_of_a_recipe_stands_in_its_section_with_its_description(made: dict[str, str]) -> None:
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", made["reference/recipe.md"], re.DOTALL | re.MULTILINE))
    for name, field in Recipe.model_fields.items():
        kinds = getattr(field.annotation, "__args__", (field.annotation,))
        kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StageConfig)), None)
        if kind is None:
            assert f"`{name}`" in sections["Whole run"]
            continue
        rows = [line for line in sections[name].splitlines() if "`</span>" in line]
        assert [row.split("`")[1] for row in rows] == list(kind.model_fields)
    assert (
        "`epochs`</span> | `NUMBER` |  | Passes over the training examples. Default: as many as read"
        in sections["train"]
    )
    assert "`data`</span> | `FILE` |  | **required.** Training examples" in sections["train"]


def test_every_decision_is_listed(made: dict[str, str]) -> None:
    listed = re.findall(r"\]\((\d+-[\w-]+\.md)\)", made["decisions/index.md"])
    assert sorted(listed) == sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))


def test_made_tables_are_whole(made: dict[str, str]) -> None:
    """No character of a description ends a cell, and none is taken for markup."""
    for path, page in made.items():
        tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
        for table in tables:
            assert len({len(cells(line)) for line in table.splitlines()}) == 1, (path, table)
    assert r".\*layers" in made["reference/verbs/sparsify.md"]
    assert "parameters&lt;=3M" in made["reference/recipe.md"]


def test_figures_are_as_their_script_draws_them() -> None:
    figures = module_of(DOCS / "figures" / "draw.py").FIGURES
    assert {path.stem for path in (DOCS / "figures").glob("*.svg")} >= set(figures)
    for name, draw in figures.items():
        assert (DOCS / "figures" / f"{name}.svg").read_text() == draw(), f"run docs/figures/draw.py: {name}"


@pytest.mark.parametrize("name", ["pruning", "nls", "recovery", "healing", "search", "kernels"])
def test_every_explanation_has_a_figure(name: str) -> None:
    assert f"](../figures/{name}.svg)" in (DOCS / "explanation" / f"{name}.md").read_text()


def cells(line: str) -> list[str]:
    """Return the cells of a table's line; a bar behind a backslash or in a code span ends none."""
    plain = re.sub(r"`[^`]*`", "", line.replace("\\|", ""))
    return plain.strip().strip("|").split("|")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_tables_are_narrow_and_text_is_wrapped(page: Path) -> None:
    fenced = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
    lines = fenced.sub("", page.read_text()).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    if "decisions" not in page.parts and page.stem != "log":
        assert [line for line in tables if len(cells(line)) > 6] == []
    text = [line for line in lines if line not in tables and not line.startswith(("    ", "#", "![", "- ["))]
    assert [line for line in text if len(line) > WIDTH] == []


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    """Text between `...` stands in one string of the source, whose parts may be on several lines."""
    source = "".join(path.read_text() for path in [*(ROOT / "src").rglob("*.py"), ROOT / "pyproject.toml"])
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (DOCS / "how-to" / "troubleshooting.md").read_text()
    messages = [
        span for row in re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE) for span in re.findall("`(.*?)`", row)
    ]
    assert len(messages) > 30
    missing = [part for message in messages for part in re.split(r" ?\.\.\. ?", message) if part not in joined]
    assert missing == []
