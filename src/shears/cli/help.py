"""The help of the verbs: options in panels, required ones first; examples are never wrapped."""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shears.cli.panels import OTHER, PANELS, REQUIRED
from shears.cli.parsing import parse
from shears.cli.tables import console

WIDTH = 80  # characters, the width of a terminal nobody has changed
COLUMN = 30  # characters of the first column; a longer flag has a line for itself
ARGUMENTS = "Arguments"
VERB_PANELS = ("Start", "Stages", "Use", "Measure")
VERBS = "Commands"  # the panel of those that name none
VERB_COLUMN = 14
DEFAULT = re.compile(r"\(default: [^()]*\)")  # is never wrapped
JOINT = "\0"  # stands for a space at which text must not be wrapped
KINDS = {"integer": "INTEGER", "integer range": "INTEGER", "float": "NUMBER"}  # by typer's names of types


class Verb(TyperCommand):
    """A command whose help has panels; it reports all mistakes of a call at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the words left after parsing; raise InputError with every mistake of the call."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        return parse(self, ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, the examples and the options by panel."""
        formatter.write(_page(self, ctx, _option_panels(self, ctx)))


class Verbs(TyperGroup):
    """The group of all commands; without a command it prints its help, in panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the words left after parsing those before a command."""
        return super().parse_args(ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Return what a command returns, or its interruption, of which typer would keep a number only."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            return error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, the examples, the commands and the options."""
        commands: dict[str, Any] = dict(self.commands)
        verbs = [(name, command) for name, command in commands.items() if not command.hidden]
        rows = []
        for name, command in verbs:
            sentence = " ".join((command.help or "").split("\n\n")[0].split())
            rows.append((command.rich_help_panel or VERBS, name, sentence))
        rows.sort(key=lambda row: VERB_PANELS.index(row[0]) if row[0] in VERB_PANELS else len(VERB_PANELS))
        formatter.write(_page(self, ctx, [*rows, *_option_panels(self, ctx)]))


Row = tuple[str, str, str]  # panel, flag or command, description


def _page(command: Any, ctx: Any, rows: Iterable[Row]) -> str:
    """Return the whole help, its rows by panel; panels are in the order of their first rows."""
    arguments = [_kind(each) for each in command.get_params(ctx) if each.param_type_name == "argument"]
    after = ["COMMAND ..."] if isinstance(command, TyperGroup) else arguments
    blocks = [" ".join(["Usage:", ctx.command_path, "[OPTIONS]", *after]), *_paragraphs(command.help or "")]
    by_panel: dict[str, list[Row]] = {}
    for row in rows:
        by_panel.setdefault(row[0], []).append(row)
    line = "-" if console.options.ascii_only else "─"
    for panel, members in by_panel.items():
        column = VERB_COLUMN if panel in (*VERB_PANELS, VERBS) else COLUMN
        rest = line * (_width() - len(panel) - 3)
        heading = f"{_styled(line, dim=True)} {_styled(panel, bold=True)} {_styled(rest, dim=True)}"
        blocks.append("\n".join([heading, *(_entry(name, text, column) for _, name, text in members)]))
    return "\n\n".join(blocks) + "\n"


def _blocks(text: str) -> list[str]:
    """Return the paragraphs of a description; those of examples begin with `shears`."""
    return text.replace("\b\n", "").strip().split("\n\n")


def _paragraphs(text: str) -> list[str]:
    """Return the description, wrapped, and its examples as they are."""
    width = _width()
    return [
        textwrap.indent(block, "  ")
        if block.startswith("shears ")
        else textwrap.fill(block, width, break_on_hyphens=False)
        for block in _blocks(text)
    ]


def examples(text: str) -> list[str]:
    """Return the command lines of a description, continued lines joined."""
    blocks = [block.replace("\\\n", " ") for block in _blocks(text) if block.startswith("shears ")]
    return [line for block in blocks for line in block.splitlines() if line.startswith("shears ")]


def _option_panels(command: Any, ctx: Any) -> list[Row]:
    """Return arguments, then required options, then the others, by panel."""
    rows = [_row(parameter, ctx) for parameter in command.get_params(ctx)]
    order = [ARGUMENTS, REQUIRED, *PANELS, OTHER]
    return sorted((row for row in rows if row is not None), key=lambda row: order.index(row[0]))


def _row(parameter: Any, ctx: Any) -> Row | None:
    if getattr(parameter, "hidden", False):
        return None
    text = parameter.help or ""
    if parameter.param_type_name == "argument":
        return ARGUMENTS, _kind(parameter), text
    panel = parameter.rich_help_panel or (REQUIRED if parameter.required else OTHER)
    if parameter.name == "help":
        text = "Show this help."
    flags = ", ".join(sorted(parameter.opts, key=len, reverse=parameter.name != "help"))
    if parameter.secondary_opts:
        flags += f" / {parameter.secondary_opts[0]}"
    return panel, flags if parameter.is_flag else f"{flags} {_kind(parameter)}", text


def _kind(parameter: Any) -> str:
    """Return the kind of value of an argument or option, also of those that typer adds itself."""
    return str(parameter.metavar or KINDS.get(parameter.type.name, "TEXT"))


def _entry(name: str, text: str, column: int) -> str:
    """Return a flag or command with its description beside it; below it if the name is long."""
    margin = " " * column
    whole = DEFAULT.sub(lambda match: match[0].replace(" ", JOINT), text)
    lines = textwrap.wrap(whole, _width() - column, break_long_words=False, break_on_hyphens=False)
    below = "".join(f"\n{margin}{line.replace(JOINT, ' ')}" for line in lines)
    if len(name) <= column - 4:
        below = below.lstrip("\n")[len(name) + 2 :]
    return f"  {_styled(name, fg='cyan')}{below}"


def _width() -> int:
    return min(console.width, WIDTH)


def _styled(text: str, **style: Any) -> str:
    """Return a text with a style if the console is a terminal that shows colours."""
    return typer.style(text, **style) if console.is_terminal and not console.no_color else text
