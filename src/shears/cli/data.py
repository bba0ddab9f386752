"""The verb data: rows as the model will see them, and what a training would leave out."""

import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.style import Style
from rich.text import Text

from shears.cli import tables
from shears.cli.options import Json, Values, app, argument, option, with_stage_options
from shears.config import TrainConfig
from shears.config.embedded import EMBEDDED
from shears.config.resolve import build
from shears.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shears.data.preview import Piece, Preview

SPLIT = "Write the rows in per cent for training, validation and test, such as 80/10/10 (80/20: no validation)."
FIELDS = ("columns", "template", "max_length")  # of train: they decide what it sees of the data
FIRST = 300  # pieces of a long row that are shown
LAST = 100
REFUSED = 3  # reasons that are shown
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}  # Unicode categories that change a terminal or hide
PROMPT = (Style(dim=True), Style())  # neighbouring tokens differ
TRAINED = (Style(color="green", underline=True), Style(color="bright_green", underline=True, bold=True))


@app.command("data", rich_help_panel="Measure")
@with_stage_options("train", TrainConfig, only=FIELDS)
def data(  # noqa: PLR0913, PLR0917  # one option each
    file: Annotated[str, argument("FILE", "Training examples: JSON, JSONL, CSV, Parquet, a hub id.")],
    model: Annotated[str, option("NAME", "Model whose tokenizer and chat template are used.")] = next(iter(EMBEDDED)),
    limit: Annotated[int | None, option("INTEGER", "Read only this many rows, the first ones.", min=1)] = None,
    show: Annotated[int, option("INTEGER", "Rows to show (default: 3).", min=0)] = 3,
    split: Annotated[str | None, option("TEXT", SPLIT)] = None,
    output: Annotated[Path | None, option("FOLDER", "Folder of the parts of --split; must not exist.")] = None,
    as_json: Json = False,
    *,
    values: Values,
) -> None:
    """Show training data as the model will see it.

    Prints some rows token by token, those with loss underlined in a terminal and in brackets
    elsewhere. Then counts the rows that train would use, leave out or refuse, and their lengths in
    tokens. Exits with 2 where train would use no row.

    With --split, writes the rows in parts instead, rows of one question into one part.

    shears data train.jsonl --model sparse --template alpaca --max-length 256
    shears data rows.csv --columns user=ticket,assistant=json \\
        --split 80/10/10 --output rows
    """
    from shears.data.preview import preview
    from shears.models.ref import resolve
    from shears.models.tokenizers import load_tokenizer

    settings = build(TrainConfig, "train", {**values, "data": file})
    if split is not None or output is not None:
        counts = write_parts(settings, split, output, limit)
        tables.print_data(counts, as_json, _print_parts)
        return
    rows = preview(settings, load_tokenizer(resolve(model)), limit, show)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    content = {"data": file, "model": model, **rows.as_data()}
    tables.print_data(content, as_json, lambda _: print_preview(file, rows))
    if not content["used"]:
        rule = f"data must have at least one row that train uses, {file} has none of {rows.rows:,}"
        raise InputError(f"{rule}; raise --max-length or correct the rows")


def write_parts(settings: TrainConfig, split: str | None, output: Path | None, limit: int | None) -> dict[str, int]:
    """Write the rows in parts and return their numbers by file; InputError where one option lacks."""
    from shears.data.examples import check_rows
    from shears.data.rows import read_rows
    from shears.data.split import parse_shares, split_rows, write_split
    from shears.records.folders import refuse_taken

    if split is None or output is None:
        there, lacking = ("--output", "--split") if split is None else ("--split", "--output")
        raise InputError(f"--split and --output go together, got {there} alone; add {lacking}")
    shares = parse_shares(split)
    refuse_taken(output)
    check_rows(settings.data, settings.columns, limit)
    parts = split_rows(read_rows(settings.data, settings.columns)[:limit], shares)
    write_split(parts, output)
    return {str(output / f"{name}.jsonl"): len(rows) for name, rows in parts.items()}


def print_preview(source: str, rows: "Preview") -> None:
    """Print the rows and the counts."""
    has_colour = tables.console.color_system is not None and not tables.console.no_color
    for number, pieces in rows.shown:
        tables.print_line(f"row {number}, {sum(len(piece.ids) for piece in pieces):,} tokens:")
        tables.console.print(as_text(pieces, has_colour=has_colour), soft_wrap=True)
        tables.print_line("")
    if rows.shown:
        mark = "green and underlined" if has_colour else "in [brackets], others between |"
        tables.print_line(f"Tokens with loss are {mark}; control characters are escaped.")
    _print_counts(source, rows)


def _print_parts(counts: "Mapping[str, int]") -> None:
    for path, count in counts.items():
        tables.print_line(f"{path}: {count:,} rows")


def _print_counts(source: str, rows: "Preview") -> None:
    used = len(rows.lengths) - rows.num_long
    counted = f"{rows.rows:,} row{'s' * (rows.rows != 1)}"
    tables.print_line(f"{escaped(source)}: {counted}, train uses {used:,}")
    if rows.num_long:
        longer = f"{rows.num_long:,} longer than {rows.max_length} tokens"
        tables.print_line(f"  left out: {longer}; --max-length raises that")
    if empty := rows.without_completion:
        tables.print_line(f"  left out: {len(empty):,} without a completion, the first is row {empty[0]}")
    if rows.refused:
        tables.print_line(f"  refused: {len(rows.refused):,}; train stops at the first")
        for number, reason in rows.refused[:REFUSED]:
            tables.print_line(f"    row {number}: {escaped(reason)}")
    if rows.lengths:
        low, middle, high, most = rows.quantiles.values()
        spread = f"min {low:,}, median {middle:,}, 95 % {high:,}, max {most:,}"
        with_loss = f"with loss, in the rows used: {rows.num_trained:,}"
        tables.print_line(f"tokens of a row: {spread}")
        tables.print_line(f"tokens in all: {sum(rows.lengths):,}; {with_loss}")


def as_text(pieces: "Sequence[Piece]", *, has_colour: bool) -> Text:
    """Return the tokens of a row, marked so that neighbours differ; a long row lacks its middle."""
    text = Text()
    hidden = len(pieces) - FIRST - LAST
    for index, piece in enumerate(pieces):
        if hidden > 0 and FIRST <= index < FIRST + hidden:
            if index == FIRST:
                text.append(f"\n... {hidden:,} tokens ...\n", Style(italic=True))
            continue
        shown = escaped(piece.text)
        if has_colour:
            text.append(shown, (TRAINED if piece.trained else PROMPT)[index % 2])
        else:
            text.append(f"[{shown}]" if piece.trained else f"{shown}|")
        text.append("\n" * piece.text.count("\n"))
    return text


def escaped(text: str) -> str:
    """Return a text with control, line break and format characters escaped, such as \\x1b."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in HIDDEN else character
        for character in text
    )
