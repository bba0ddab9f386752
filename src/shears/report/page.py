"""The page: the sections a run has, one style, one script, and a policy under which a browser loads nothing else."""

import base64
import hashlib
from importlib.resources import files

from markupsafe import Markup

from shears.records.version import __version__
from shears.report.headline import cards, headlines, sentence, warnings
from shears.report.html import document, element
from shears.report.records import Run
from shears.report.sections import sections_of


def page(run: Run, other: Run | None = None) -> str:
    """Return the report of a run as one HTML file, compared with another run where one is given."""
    style, script = (files("shears.report").joinpath(name).read_text("utf-8") for name in ("style.css", "script.js"))
    return document(_head(run, style, script), _body(run, other, script))


def _head(run: Run, style: str, script: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"shears: {_name(run)}"),
        element("style", Markup(style)),  # a file of ours
    )


def _body(run: Run, other: Run | None, script: str) -> Markup:
    sections = list(sections_of(run, other))
    links = element("nav", *(element("a", title, href=f"#{key}") for key, title, _ in sections), aria_label="Sections")
    origin = f"Written by shears {__version__} from the files of this run. Nothing here is loaded from elsewhere."
    return element(
        "body",
        element("a", "Skip to the figures", href="#main", class_="skip"),
        element("header", element("h1", _name(run)), element("p", _lead(run)), links),
        element(
            "main",
            *_warnings(run),
            _words(run),
            cards(headlines(run)),
            *(content for *_, content in sections),
            id="main",
        ),
        element("footer", origin),
        element("div", id="copied", role="status", aria_live="polite"),
        element("script", Markup(script)),  # a file of ours
    )


def _warnings(run: Run) -> list[Markup]:
    """What a reader must know before the figures."""
    return [element("p", element("strong", "Warning: "), words, class_="words", role="note") for words in warnings(run)]


def _words(run: Run) -> Markup | None:
    words = sentence(run)
    return element("p", words, class_="words") if words else None


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _lead(run: Run) -> str:
    model = run.recipe.get("model") or (run.sparsity or {}).get("model", "a model")
    stages = ", ".join(name for name, _ in run.stages())
    return f"A run of shears on {model}" + (f": {stages}." if stages else ".")
