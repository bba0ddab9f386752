"""Write docs/reference/verbs.md and recipe.md from the configuration.

    make reference

A test holds the committed pages equal to what `pages` returns.
"""

import html
import re
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from shears.cli import application
from shears.cli.options import METAVARS, MORE, metavar
from shears.config import Recipe
from shears.config.fields import StageConfig

FOLDER = Path(__file__).parent / "reference"
ARGUMENTS = "Arguments"
OPTIONS = "Options"
DEFAULT = re.compile(r"\(default: [^()]*\)")
VERB_PANELS = ("Start", "Stages", "Use", "Measure")
SHARED = ("config", "set_", "help", "help_all")  # options of every verb: see command-line.md


def pages() -> dict[str, str]:
    """Return both pages by their file names."""
    return {"verbs.md": verbs_page(), "recipe.md": recipe_page()}


def verbs_page() -> str:
    """Return the page of all verbs, by the panels of the help."""
    verbs = verbs_of(application_group())
    links = ", ".join(f"[{name}](#shears-{name})" for name in verbs)
    blocks = [
        "# Verbs",
        f"This page lists the options of every verb: {links}. "
        "[The command line](../command-line.md) has what all verbs share.",
        *(verb_section(name, verb) for name, verb in verbs.items()),
    ]
    return "\n\n".join(blocks) + "\n"


def application_group() -> Any:
    """Return the command line as a click group."""
    return typer.main.get_command(application())


def verbs_of(group: Any) -> dict[str, Any]:
    """Return the verbs by name: by the panels of the help, then by name, whatever was imported first."""
    shown = {name: verb for name, verb in group.commands.items() if not verb.hidden}
    return dict(sorted(shown.items(), key=lambda item: (VERB_PANELS.index(item[1].rich_help_panel), item[0])))


def verb_section(name: str, verb: Any) -> str:
    """Return the section of a verb: what it does, examples, arguments and options by panel."""
    blocks = [f"## shears {name}"]
    for block in (verb.help or "").strip().split("\n\n"):
        text = block.removeprefix("\b\n")
        is_example = text != block or text.startswith(f"shears {name} ")
        blocks.append(f"```text\n{text}\n```" if is_example else text_of(" ".join(text.split())))
    panels: dict[str, list[Any]] = {panel: [] for panel in (ARGUMENTS, OPTIONS, MORE)}
    for parameter in verb.params:
        if parameter.name not in SHARED:
            panels[panel_of(parameter)].append(parameter)
    section = section_of(name)
    heads = ("name", "values", "default", "meaning")
    keys = list_of_keys(panels, section)
    for panel, members in panels.items():
        rows = [option_row(parameter) for parameter in members if parameter not in keys]
        blocks += [f"### {panel}", table(heads, rows)] if rows else []
    if keys:
        flags = ", ".join(" or ".join(map(code, parameter.opts)) for parameter in keys)
        blocks.append(f"[Keys of a recipe](recipe.md#{section}) are options too: {flags}.")
    if any("--config" in parameter.opts for parameter in verb.params):
        blocks.append(
            f"`--config FILE` reads the section `{section}` of a recipe. `--set KEY=VALUE` and flags override it."
        )
    return "\n\n".join(blocks)


def list_of_keys(panels: dict[str, list[Any]], section: str) -> list[Any]:
    """Return the options that the page of recipe keys describes."""
    if section not in Recipe.model_fields:
        return []
    kind = section_class(Recipe.model_fields[section])
    assert kind is not None
    return [each for panel in (OPTIONS, MORE) for each in panels[panel] if each.name in kind.model_fields]


def section_of(verb: str) -> str:
    """Return the section of a recipe that a verb reads."""
    return "train" if verb == "data" else verb


def panel_of(parameter: Any) -> str:
    """Return the panel of an argument or option."""
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    return parameter.rich_help_panel or OPTIONS


def option_row(parameter: Any) -> tuple[str, str, str, str]:
    """Return a row of a verb's table."""
    if parameter.param_type_name == "argument":
        return code(parameter.metavar), "", "", text_of(parameter.help or "")
    names = [*sorted(parameter.opts, key=lambda name: name[:2] != "--"), *parameter.secondary_opts]
    kind = "" if parameter.is_flag else parameter.metavar
    found = DEFAULT.search(parameter.help or "")
    default = " ".join(found[0].removeprefix("(default: ").removesuffix(")").split()) if found else ""
    return (
        "<br>".join(map(code, names)),
        kinds(kind),
        code(default),
        text_of(DEFAULT.sub("", parameter.help or "")),
    )


def recipe_page() -> str:
    """Return the page of a recipe: the keys of every section."""
    sections = {name: field for name, field in Recipe.model_fields.items() if section_class(field)}
    blocks = [
        "# Recipe keys",
        "A recipe is a YAML file with one section per stage. One key is a flag, a `--set` and a keyword of the Python "
        "function, under one name: `train.max_steps`, `--max-steps`, `--set train.max_steps=100`, "
        "`shears.train(..., max_steps=100)`. An unknown key is refused. `shears init` writes a recipe to begin with.",
        "## Whole run",
        keys_table({name: field for name, field in Recipe.model_fields.items() if name not in sections}),
    ]
    for name, field in sections.items():
        kind = section_class(field)
        assert kind is not None
        blocks += [f"## {name}", text_of(field.description or ""), keys_table(kind.model_fields)]
    return "\n\n".join(blocks) + "\n"


def section_class(field: FieldInfo) -> type[StageConfig] | None:
    """Return the configuration of a section, None for a plain key."""
    options = getattr(field.annotation, "__args__", (field.annotation,))
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, StageConfig)), None)


def keys_table(fields: dict[str, FieldInfo]) -> str:
    """Return the table of some keys."""
    return table(("key", "values", "default", "meaning"), (key_row(name, field) for name, field in fields.items()))


def key_row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    """Return a row of a section's table."""
    default = "" if field.is_required() else yaml_of(field.get_default(call_default_factory=True))
    meaning = text_of(field.description or "")
    return (
        code(name),
        kinds(METAVARS.get(name) or metavar(field.annotation)),
        default,
        f"**required.** {meaning}" if field.is_required() else meaning,
    )


def yaml_of(value: Any) -> str:
    """Return a default as it stands in a recipe; empty for none."""
    if value in (None, (), {}):
        return ""
    return code(yaml.safe_dump(to_jsonable_python(value), default_flow_style=True).removesuffix("...\n").strip())


def kinds(text: str) -> str:
    """Return the kind of value; choices stand apart, because a bar would end the cell of a table."""
    return ", ".join(map(code, text.split("|")))


def code(text: str) -> str:
    """Return a text as a code span, empty for an empty one."""
    return f"`{text}`" if text else ""


def text_of(text: str) -> str:
    """Return a plain text as Markdown that shows it as it is."""
    escaped = re.sub(r"([\\*_`\[\]|])", r"\\\1", " ".join(text.split()))
    return html.escape(escaped, quote=False)


def table(heads: tuple[str, ...], rows: Any) -> str:
    """Return a Markdown table without the columns that are empty in every row."""
    cells = list(rows)
    used = [index for index in range(len(heads)) if any(row[index] for row in cells)]
    lines = [[heads[index] for index in used], ["---"] * len(used), *([row[index] for index in used] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
