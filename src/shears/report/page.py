"""The report of a run (`shears report`): one HTML file that loads nothing else."""

import base64
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from shears.errors import RECORD_ERRORS, InputError, first_line
from shears.records.artifacts import REPORT, write_text
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.report.headline import headlines, sentence, warnings
from shears.report.html import asset, document, element, section
from shears.report.measurements import accuracy_section, examples_section, speed_section
from shears.report.pairs import comparison
from shears.report.records import Run, read_run
from shears.report.search import search_section
from shears.report.stages import layers_section, recipe_section, training_section

logger = logging.getLogger(__name__)


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Path:
    """Write the report of a run's folder to one self-contained HTML file and return its path.

    By default the file is `report.html` in the run's folder. `compare` is another run, shown beside the first one.
    Raises InputError if a folder is not a run or the output is not an .html file in a folder that exists.
    """
    folder = Path(run)
    other = Path(compare) if compare is not None else None
    path = expanded(output) if output is not None else folder / REPORT
    text = _page(folder, other)
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"the output must be an .html file in an existing folder, got {path}; name another")
    write_text(path, text)
    logger.info("wrote %s, %.1f kB", path, len(text.encode()) / 1e3)
    return path


def _page(folder: Path, other: Path | None) -> str:
    """Return the page; InputError if a record lacks what its stage writes."""
    try:
        return page(read_run(folder), read_run(other) if other is not None else None)
    except InputError:
        raise
    except RECORD_ERRORS as error:
        where = f"{folder} and {other}" if other is not None else f"{folder}"
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"the records in {where} must be as shears wrote them, got {what}; make them again") from error


def page(run: Run, other: Run | None = None) -> str:
    """Return the report of a run as HTML, compared with `other` if it is given."""
    style = asset("style.css")
    script = asset("script.js")
    sections = list(_sections(run, other))
    links = element("nav", *(element("a", title, href=f"#{key}") for key, title, _ in sections), aria_label="Sections")
    name = run.folder.resolve().name
    model = run.recipe.get("model") or (run.sparsity or {}).get("model", "a model")
    stages = ", ".join(name for name, _ in run.stages())
    lead = f"A run of shears on {model}" + (f": {stages}." if stages else ".")
    origin = f"Written by shears {__version__} from the files of this run. Nothing here is loaded from elsewhere."
    body = element(
        "body",
        element("a", "Skip to the figures", href="#main", class_="skip"),
        element("header", element("h1", name), element("p", lead), links),
        element("main", *_summary(run), *(content for *_, content in sections), id="main"),
        element("footer", origin),
        element("div", id="copied", role="status", aria_live="polite"),
        element("script", Markup(script)),  # not escaped: a file of this package
    )
    return document(name, body, style, _policy(style, script))


def _sections(run: Run, other: Run | None) -> Iterator[tuple[str, str, Markup]]:
    """Yield the key, title and content of each section that the run has records for."""
    sections = (
        ("quality", "Accuracy", accuracy_section(run)),
        ("comparison", "Comparison", comparison(run, other) if other else None),
        ("speed", "Speed", speed_section(run)),
        ("layers", "Layers", layers_section(run)),
        ("training", "Training", training_section(run)),
        ("search", "Search", search_section(run)),
        ("examples", "Examples", examples_section(run)),
        ("origin", "Recipe", recipe_section(run)),
    )
    for key, title, parts in sections:
        if parts is not None:
            yield key, title, section(key, title, *parts)


def _summary(run: Run) -> Iterator[Markup]:
    """Yield what stands above the sections: warnings, the run in one sentence, its headlines."""
    for words in warnings(run):
        yield element("p", element("strong", "Warning: "), words, class_="words", role="note")
    if summary := sentence(run):
        yield element("p", summary, class_="words")
    yield headlines(run)


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows this style and this script and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
