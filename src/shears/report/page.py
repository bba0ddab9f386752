"""The report of a run (`shears report`): one HTML file that loads nothing else."""

import base64
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from shears.errors import RECORD_ERRORS, InputError, first_line
from shears.records.artifacts import REPORT, write_text
from shears.records.measures import is_share, seen_words
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.report.html import asset, document, element, section
from shears.report.measurements import accuracy_section, examples_section, speed_section, speedup_over_dense
from shears.report.pairs import comparison
from shears.report.records import Record, Run, read_run
from shears.report.search import measured, objectives_of, search_section
from shears.report.stages import layers_section, recipe_section, training_section
from shears.report.words import GAP, count, figure, interval, percent, plural, size, times

logger = logging.getLogger(__name__)


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Path:
    """Write the report of a run's folder to one self-contained HTML file and return its path.

    By default the file is `report.html` in the run's folder. `compare` is another run, shown beside the first one.
    Raises InputError if a folder is not a run, a record lacks what its stage writes, or the output is not an .html file
    in a folder that exists.
    """
    folder = Path(run)
    other = Path(compare) if compare is not None else None
    path = expanded(output) if output is not None else folder / REPORT
    try:
        text = page(read_run(folder), read_run(other) if other is not None else None)
    except InputError:
        raise
    except RECORD_ERRORS as error:
        where = f"{folder} and {other}" if other is not None else f"{folder}"
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"the records in {where} must be as shears wrote them, got {what}; make them again") from error
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"the output must be an .html file in an existing folder, got {path}; name another")
    write_text(path, text)
    logger.info("wrote %s, %.1f kB", path, len(text.encode()) / 1e3)
    return path


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
    for row in run.models:
        if words := seen_words(row, row["name"], percent):
            words += " Its accuracy on all of them does not show what it learned."
            yield element("p", element("strong", "Warning: "), words, class_="words", role="note")
    if summary := _sentence(run):
        yield element("p", summary, class_="words")
    yield _headlines(run)


def _headlines(run: Run) -> Markup:
    """Return the headlines of a run as a list."""
    parts = (_quality, _weights, _speed, _size, _search)
    return element("ul", *(headline for part in parts for headline in part(run)), class_="headlines")


def _headline(value: str, meaning: str, source: str) -> Markup:
    """Return a figure in large letters, its meaning, and the figures that it comes from."""
    return element("li", element("strong", value), element("span", meaning), element("small", source))


def _quality(run: Run) -> Iterator[Markup]:
    if not run.models:
        return
    dense, *others = run.models
    if not others:
        meaning = f"{dense['metric']} of the {dense['name']} model"
        yield _headline(_value(dense), meaning, f"{interval(dense)}, {_examples(dense)}")
    for row in (*others[-1:], *others[:-1]):
        source = f"{_value(row)} ({interval(row)}) against {_value(dense)} ({interval(dense)}), {_examples(row)}"
        kept = _kept(dense, row)
        of = "" if kept.endswith("x") else "of "
        relative = f"{of}the {dense['name']} model's {row['metric']}, by {row['name']}"
        yield _headline(kept, relative if dense["value"] else f"{row['metric']} of {row['name']}", source)


def _value(row: Record) -> str:
    return figure(row["metric"], row["value"])


def _examples(row: Record) -> str:
    return f"n{GAP}={GAP}{row['n']}"


def _kept(dense: Record, other: Record) -> str:
    """Return a figure relative to the dense model's, or by itself if that is 0."""
    if not dense["value"]:
        return _value(other)
    ratio = other["value"] / dense["value"]
    return f"{100 * ratio:.0f}{GAP}%" if is_share(dense["metric"]) and ratio < 1.5 else times(ratio)


def _weights(run: Run) -> Iterator[Markup]:
    if len(run.models) > 1:
        dense, *_, last = run.models
        ratio, meaning = _nonzeros(dense, last)
        if last["adapter_parameters"]:
            meaning += ", including the adapter's"
        weights = count(last["nonzeros"] + last["adapter_parameters"])
        yield _headline(ratio, meaning, f"{weights} against {count(dense['nonzeros'])}, embeddings included")
    if run.sparsity is not None:
        linears = run.sparsity["linears"].values()
        weights = count(sum(linear["shape"][0] * linear["shape"][1] for linear in linears))
        source = f"{weights} weights in {len(linears)} linears{_merged(run)}"
        yield _headline(percent(run.sparsity["achieved"]), "of the pruned linears' weights are zero", source)


def _nonzeros(dense: Record, other: Record) -> tuple[str, str]:
    """Return how many times fewer (or more) non-zero weights a model has than the dense one."""
    ratio = float(dense["nonzeros"] / (other["nonzeros"] + other["adapter_parameters"]))
    if ratio < 1:
        return times(1 / ratio), "more non-zero weights"
    return times(ratio), "fewer non-zero weights"


def _merged(run: Run) -> str:
    """Return the zeros left if merging filled some of them, as with a plain adapter."""
    if run.merged is None or run.exported is not run.merged:
        return ""
    after = run.merged["sparsity"]["after"]
    return "" if after >= run.merged["sparsity"]["before"] else f"; {percent(after)} with the adapter merged"


def _speed(run: Run) -> Iterator[Markup]:
    if run.bench is not None and (ratio := speedup_over_dense(run)):
        conditions = f"{run.bench['rounds']} rounds, {plural(run.bench['threads'], 'thread')}"
        source = f"{times(ratio['min'])} to {times(ratio['max'])} over {conditions}"
        yield _headline(times(ratio["median"]), "as fast as the dense model in transformers, decoding", source)


def _size(run: Run) -> Iterator[Markup]:
    if run.package is not None and (sizes := run.package.get("bytes")):
        packed, dense = sizes["model"], sizes["model_dense"]
        meaning = "the size on disk of the dense model in the same number format"
        yield _headline(times(packed / dense), meaning, f"{size(packed)} against {size(dense)}")


def _search(run: Run) -> Iterator[Markup]:
    if run.result is None or len(run.result["evaluations"]) < 2:
        return
    name, _ = objectives_of(run.result)
    values = [entry["metrics"][name] for entry in measured(run.result).values()]
    if values:  # none if every configuration breaks a bound
        value = figure(name, run.result["chosen"]["metrics"][name])
        source = f"{figure(name, values[0])} of the first one measured, {len(run.result['evaluations'])} tried"
        yield _headline(value, f"{name} of the chosen configuration on validation data", source)


def _sentence(run: Run) -> str | None:
    """Return the run in one sentence; None if fewer than two models were measured."""
    if len(run.models) < 2:
        return None
    dense, *_, last = run.models
    words = f"{_beside(dense, last)} ({_value(last)} against {_value(dense)}, {_examples(last)})"
    words += f" with {' '.join(_nonzeros(dense, last))}"
    if run.package is not None and (sizes := run.package.get("bytes")):
        words += f", {sizes['model'] / sizes['model_dense']:.2f} of its size on disk"
    if ratio := speedup_over_dense(run):
        words += f", {times(ratio['median'])} as fast as the dense model in transformers"
    untrained = " The dense model was not trained on the task." if run.only_last_is_trained else ""
    return f"{words[0].upper()}{words[1:]}.{untrained}"


def _beside(dense: Record, other: Record) -> str:
    kept = _kept(dense, other)
    if not dense["value"]:
        return f"{other['name']} has {other['metric']} {kept}"
    relation = f"has {kept[:-1]} times" if kept.endswith("x") else f"keeps {kept} of"
    return f"{other['name']} {relation} the {dense['name']} model's {other['metric']}"


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows this style and this script and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
