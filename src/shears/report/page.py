"""The report of a run (`shears report`): one HTML file that loads nothing else."""

import base64
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from shears.config.evaluate import BASELINES
from shears.errors import RECORD_ERRORS, InputError, first_line
from shears.evaluation.comparison import paired
from shears.records.artifacts import REPORT, write_text
from shears.records.figures import dense_format, seen_words
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.report.compressed import compressed_page, is_compressed
from shears.report.html import asset, document, element, section
from shears.report.measurements import (
    accuracy_section,
    examples_section,
    ranks_section,
    speed_section,
    speedup_over_dense,
)
from shears.report.pairs import aligned, comparison
from shears.report.records import Record, Run, read_run
from shears.report.search import measured, objectives_of, search_section
from shears.report.stages import layers_section, recipe_section, training_section
from shears.report.words import GAP, count, figure, interval, percent, plural, points, size, times

logger = logging.getLogger(__name__)


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Path:
    """Write the report of a run's folder to one self-contained HTML file and return its path.

    By default the file is `report.html` in the run's folder. The folder may also be one of
    `compress`. `compare` is another run, shown beside the first one. Raises InputError if a folder
    is not a run, a record lacks what its stage writes, or the output is not an .html file in a
    folder that exists.
    """
    folder = Path(run)
    other = Path(compare) if compare is not None else None
    path = expanded(output) if output is not None else folder / REPORT
    if other is not None and is_compressed(folder):
        raise InputError(f"compare needs a run, {folder} is a folder of compress; name the runs in it")
    try:
        if is_compressed(folder):
            text = compressed_page(folder)
        else:
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
        ("ranks", "Ranks", ranks_section(run)),
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
    parts = (_quality, _weights, _speed, _size, _search)
    yield element("ul", *(headline for part in parts for headline in part(run)), class_="headlines")


def _headline(value: str, meaning: str, source: str) -> Markup:
    """Return a figure in large letters, its meaning, and the figures that it comes from."""
    return element("li", element("strong", value), element("span", meaning), element("small", source))


def _quality(run: Run) -> Iterator[Markup]:
    """Yield the run's main difference, those to other baselines, and the cost of pruning alone."""
    if not run.models:
        return
    dense, *others = run.models
    if not others:
        meaning = f"{dense['metric']} of the {dense['name']} model"
        yield _headline(_value(dense), meaning, f"{interval(dense)}, {_examples(dense)}")
        return
    last = others[-1]
    first, *rest = run.references
    yield _difference(run, last, first)
    yield from (_difference(run, last, row) for row in rest if row["name"] in BASELINES)
    if len(others) > 1:
        yield _difference(run, others[0], dense, ": pruning alone")


def _difference(run: Run, row: Record, other: Record, about: str = "") -> Markup:
    """Return the headline of a paired difference with its interval and counts, or both figures.

    `about` are words on what the difference means.
    """
    against = f"{_value(row)} against {_value(other)}"
    untrained = _untrained(run, row, other)
    if (gap := _gap(run, row, other)) is None:
        return _headline(
            _value(row), f"{row['metric']} of {row['name']}{about}", f"{against} of {other['name']}{untrained}"
        )
    counts = f"of {gap['n']:,} questions, {gap['won']:,} right only by the first and {gap['lost']:,} only by the second"
    source = f"95{GAP}% interval {_ends(gap)}; {against}; {counts}"
    return _headline(f"{points(gap['value'])} points", f"{row['name']} minus {other['name']}{untrained}{about}", source)


def _gap(run: Run, row: Record, other: Record) -> Record | None:
    """Return the paired difference of two models; None if their examples cannot be paired."""
    records = aligned([run.figures[each["name"]] for each in (row, other) if each["name"] in run.figures])
    return paired(*records) if len(records) == 2 else None


def _ends(gap: Record) -> str:
    low, high = gap["ci95"]
    return f"{points(low)} to {points(high)}".replace(" ", GAP)


def _untrained(run: Run, row: Record, other: Record) -> str:
    """Return the words on a model without training that a trained one is compared with."""
    trained = {*BASELINES, run.models[-1]["name"]}
    is_unfair = run.only_run_trained and row["name"] in trained and other["name"] not in trained
    return ", which was not trained on the task" if is_unfair else ""


def _value(row: Record) -> str:
    return figure(row["metric"], row["value"])


def _examples(row: Record) -> str:
    return f"n{GAP}={GAP}{row['n']}"


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
        meaning = f"the size on disk of the dense model in {dense_format(run.package)}"
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
    words = f"{_beside(run, last, run.references[0])}. It has {' '.join(_nonzeros(dense, last))} than the dense model"
    if run.package is not None and (sizes := run.package.get("bytes")):
        words += f", takes {sizes['model'] / sizes['model_dense']:.2f} of its size on disk"
    if ratio := speedup_over_dense(run):
        words += f", decodes {times(ratio['median'])} as fast as it in transformers"
    return f"{words[0].upper()}{words[1:]}."


def _beside(run: Run, row: Record, other: Record) -> str:
    """Return in words how far a model is from another, and whether the questions show it."""
    name = f"{other['name']}{_untrained(run, row, other)}"
    figures = f"{_value(row)} against {_value(other)}, {_examples(row)}"
    if (gap := _gap(run, row, other)) is None:
        return f"{row['name']} has {row['metric']} {_value(row)}, against {_value(other)} of {name}"
    side = "above" if gap["value"] > 0 else "below"
    words = f"{abs(100 * gap['value']):.1f} points {side}" if gap["won"] != gap["lost"] else "level with"
    low, high = gap["ci95"]
    doubt = "" if low > 0 or high < 0 else "; these questions do not tell the two apart"
    return f"{row['name']} is {words} {name} (95{GAP}% interval {_ends(gap)}; {figures}){doubt}"


def _policy(style: str, script: str) -> str:
    """Return a content security policy that allows this style and this script and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
