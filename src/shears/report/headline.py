"""The run in a few figures and words: only what was measured, each beside what it is compared with."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup

from shears.records.measures import is_share, seen_words
from shears.report.html import element
from shears.report.records import Record, Run
from shears.report.searched import measured, objectives_of
from shears.report.speed import faster_than_stock
from shears.report.words import GAP, count, figure, interval, percent, size, times

NO_MEASURE = "Its accuracy on all of them is no measure of what was learned."


class Headline(NamedTuple):
    """A figure in large letters, what it says, and from which figures it comes."""

    value: str
    says: str
    source: str


def headlines(run: Run) -> list[Headline]:
    """Return what can be said of a run."""
    return [*_quality(run), *_weights(run), *_speed(run), *_size(run), *_search(run)]


def _quality(run: Run) -> Iterator[Headline]:
    if not run.models:
        return
    (first, *others), last = run.models, run.models[-1]
    if not others:
        value = figure(last["metric"], last["value"])
        yield Headline(
            value, f"{last['metric']} of the {last['name']} model", f"{interval(last)}, n{GAP}={GAP}{last['n']}"
        )
        return
    for row in (last, *others[:-1]):
        yield Headline(_kept(first, row), _kept_words(first, row), _pair(first, row))


def _kept(dense: Record, other: Record) -> str:
    if not dense["value"]:
        return figure(other["metric"], other["value"])
    ratio = other["value"] / dense["value"]
    return f"{100 * ratio:.0f}{GAP}%" if is_share(dense["metric"]) and ratio < 1.5 else times(ratio)


def _kept_words(dense: Record, other: Record) -> str:
    if not dense["value"]:
        return f"{other['metric']} of {other['name']}"
    of = "" if _kept(dense, other).endswith("x") else "of "
    return f"{of}the {dense['name']} model's {other['metric']}, by {other['name']}"


def _pair(dense: Record, other: Record) -> str:
    metric = other["metric"]
    return (
        f"{figure(metric, other['value'])} ({interval(other)}) against {figure(metric, dense['value'])} "
        f"({interval(dense)}), n{GAP}={GAP}{other['n']}"
    )


def _weights(run: Run) -> Iterator[Headline]:
    if len(run.models) > 1:
        dense, last = run.models[0], run.models[-1]
        left = last["nonzeros"] + last["adapter_parameters"]
        ratio, words = _nonzeros(dense, last)
        yield Headline(
            ratio,
            f"{words}, the adapter's counted in" if last["adapter_parameters"] else words,
            f"{count(left)} against {count(dense['nonzeros'])}, embeddings included",
        )
    if run.sparsity is not None:
        linears = run.sparsity["linears"].values()
        weights = sum(linear["shape"][0] * linear["shape"][1] for linear in linears)
        yield Headline(
            percent(run.sparsity["achieved"]),
            "of the pruned linears' weights are zero",
            f"{count(weights)} weights in {len(linears)} linears{_merged(run)}",
        )


def _merged(run: Run) -> str:
    """Say where the exported model has fewer zeros than the pruned one: merging a plain adapter fills them."""
    if run.merged is None or run.exported is not run.merged:
        return ""
    before, after = run.merged["sparsity"]["before"], run.merged["sparsity"]["after"]
    return "" if after >= before else f"; {percent(after)} with the adapter merged"


def _speed(run: Run) -> Iterator[Headline]:
    if run.bench is not None and (ratio := faster_than_stock(run.bench)):
        says = "as fast as the dense model in transformers, decoding"
        low, high = times(ratio["min"]), times(ratio["max"])
        threads = f"{run.bench['threads']} thread{'s' * (run.bench['threads'] != 1)}"
        yield Headline(times(ratio["median"]), says, f"{low} to {high} over {run.bench['rounds']} rounds, {threads}")


def _size(run: Run) -> Iterator[Headline]:
    if run.package is not None and (sizes := run.package.get("bytes")):
        packed, dense = sizes["model"], sizes["model_dense"]
        says = "on disk: the packed model beside the dense one of the same number format"
        yield Headline(times(packed / dense), says, f"{size(packed)} against {size(dense)}")


def _search(run: Run) -> Iterator[Headline]:
    if run.result is None or len(run.result["evaluations"]) < 2:
        return
    chosen, name = run.result["chosen"]["metrics"], objectives_of(run.result)[0]
    tried = [entry["metrics"][name] for entry in measured(run.result).values()]
    if tried:  # else all break a bound
        yield Headline(
            figure(name, chosen[name]),
            f"{name} on validation data of the configuration chosen",
            f"{figure(name, tried[0])} of the first measured, {len(run.result['evaluations'])} tried",
        )


def sentence(run: Run) -> str | None:
    """Return the run in one sentence; None where no two models were measured."""
    if len(run.models) < 2:
        return None
    dense, last = run.models[0], run.models[-1]
    figures = f"{figure(last['metric'], last['value'])} against {figure(dense['metric'], dense['value'])}"
    figures += f", n{GAP}={GAP}{last['n']}"
    words = f"{_beside(dense, last)} ({figures}) with {' '.join(_nonzeros(dense, last))}"
    if run.package is not None and (sizes := run.package.get("bytes")):
        words += f", {sizes['model'] / sizes['model_dense']:.2f} of its size on disk"
    if run.bench is not None and (ratio := faster_than_stock(run.bench)):
        words += f", {times(ratio['median'])} as fast as the dense model in transformers"
    untrained = " The dense model was not trained on the task." if run.trains_alone else ""
    return f"{words[0].upper()}{words[1:]}.{untrained}"


def warnings(run: Run) -> list[str]:
    """Return for each model whose training data hold test questions how many, and its accuracy on the others."""
    told = (seen_words(row, row["name"], percent) for row in run.models)
    return [f"{words} {NO_MEASURE}" for words in told if words]


def _beside(dense: Record, other: Record) -> str:
    kept = _kept(dense, other)
    if not dense["value"]:
        return f"{other['name']} has {other['metric']} {kept}"
    of = f"the {dense['name']} model's {other['metric']}"
    return (
        f"{other['name']} has {kept[:-1]} times {of}" if kept.endswith("x") else f"{other['name']} keeps {kept} of {of}"
    )


def _nonzeros(dense: Record, other: Record) -> tuple[str, str]:
    """Return how many times fewer weights are not zero, or more: an adapter on an unpruned model adds some."""
    ratio = float(dense["nonzeros"] / (other["nonzeros"] + other["adapter_parameters"]))
    more = ratio < 1
    return times(1 / ratio if more else ratio), f"{'more' if more else 'fewer'} non-zero weights"


def cards(found: list[Headline]) -> Markup:
    """Return the headlines as a list."""

    def card(headline: Headline) -> Any:
        value, says = element("strong", headline.value), element("span", headline.says)
        return element("li", value, says, element("small", headline.source))

    return element("ul", *map(card, found), class_="headlines")
