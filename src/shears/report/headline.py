"""The run in a few measured figures and a sentence, each with what it is compared with."""

from collections.abc import Iterator
from typing import NamedTuple

from markupsafe import Markup

from shears.records.measures import is_share, seen_words
from shears.report.html import element
from shears.report.measurements import speedup_over_dense
from shears.report.records import Record, Run
from shears.report.search import measured, objectives_of
from shears.report.words import GAP, count, figure, interval, percent, plural, size, times

NO_MEASURE = "Its accuracy on all of them does not show what it learned."


class Headline(NamedTuple):
    """A figure in large letters, its meaning, and the figures that it comes from."""

    value: str
    meaning: str
    source: str


def headlines(run: Run) -> Markup:
    """Return the headlines of a run as a list."""
    items = (
        element("li", element("strong", value), element("span", meaning), element("small", source))
        for part in (_quality, _weights, _speed, _size, _search)
        for value, meaning, source in part(run)
    )
    return element("ul", *items, class_="headlines")


def _quality(run: Run) -> Iterator[Headline]:
    if not run.models:
        return
    dense, *others = run.models
    if not others:
        meaning = f"{dense['metric']} of the {dense['name']} model"
        yield Headline(_value(dense), meaning, f"{interval(dense)}, {_examples(dense)}")
    for row in (*others[-1:], *others[:-1]):
        source = f"{_value(row)} ({interval(row)}) against {_value(dense)} ({interval(dense)}), {_examples(row)}"
        kept = _kept(dense, row)
        of = "" if kept.endswith("x") else "of "
        relative = f"{of}the {dense['name']} model's {row['metric']}, by {row['name']}"
        yield Headline(kept, relative if dense["value"] else f"{row['metric']} of {row['name']}", source)


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


def _weights(run: Run) -> Iterator[Headline]:
    if len(run.models) > 1:
        dense, *_, last = run.models
        ratio, meaning = _nonzeros(dense, last)
        if last["adapter_parameters"]:
            meaning += ", including the adapter's"
        weights = count(last["nonzeros"] + last["adapter_parameters"])
        yield Headline(ratio, meaning, f"{weights} against {count(dense['nonzeros'])}, embeddings included")
    if run.sparsity is not None:
        linears = run.sparsity["linears"].values()
        weights = count(sum(linear["shape"][0] * linear["shape"][1] for linear in linears))
        source = f"{weights} weights in {len(linears)} linears{_merged(run)}"
        yield Headline(percent(run.sparsity["achieved"]), "of the pruned linears' weights are zero", source)


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


def _speed(run: Run) -> Iterator[Headline]:
    if run.bench is not None and (ratio := speedup_over_dense(run)):
        conditions = f"{run.bench['rounds']} rounds, {plural(run.bench['threads'], 'thread')}"
        source = f"{times(ratio['min'])} to {times(ratio['max'])} over {conditions}"
        yield Headline(times(ratio["median"]), "as fast as the dense model in transformers, decoding", source)


def _size(run: Run) -> Iterator[Headline]:
    if run.package is not None and (sizes := run.package.get("bytes")):
        packed, dense = sizes["model"], sizes["model_dense"]
        meaning = "the size on disk of the dense model in the same number format"
        yield Headline(times(packed / dense), meaning, f"{size(packed)} against {size(dense)}")


def _search(run: Run) -> Iterator[Headline]:
    if run.result is None or len(run.result["evaluations"]) < 2:
        return
    name, _ = objectives_of(run.result)
    values = [entry["metrics"][name] for entry in measured(run.result).values()]
    if values:  # none if every configuration breaks a bound
        value = figure(name, run.result["chosen"]["metrics"][name])
        source = f"{figure(name, values[0])} of the first one measured, {len(run.result['evaluations'])} tried"
        yield Headline(value, f"{name} of the chosen configuration on validation data", source)


def sentence(run: Run) -> str | None:
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


def warnings(run: Run) -> list[str]:
    """Return a warning for each model that was trained on test questions."""
    warned = (seen_words(row, row["name"], percent) for row in run.models)
    return [f"{words} {NO_MEASURE}" for words in warned if words]
