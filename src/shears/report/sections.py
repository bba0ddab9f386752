"""What each section of the page says and shows; a section of which the run has nothing is left out."""

from collections import defaultdict
from collections.abc import Iterator

from markupsafe import Markup

from shears.config.goals import MAXIMISED
from shears.records.measures import other_readings
from shears.report.bars import measurement_picture
from shears.report.comparison import comparison
from shears.report.curves import history_picture, training_pictures
from shears.report.examples import agreement, differing
from shears.report.front import counted, front_picture
from shears.report.maps import rank_map, sparsity_map
from shears.report.origin import recipe_text, stages_table, times_table, versions_table
from shears.report.pairs import apart, other_prompts, pairs_table, unpaired_words, within
from shears.report.records import Record, Run
from shears.report.searched import known, measured, objectives_of
from shears.report.section import section
from shears.report.speed import speed_pictures, speed_words
from shears.report.words import count, digits, duration, figure

Made = tuple[object, ...] | None  # the words of a section, then its pictures and tables


def sections_of(run: Run, other: Run | None) -> Iterator[tuple[str, str, Markup]]:
    """Yield the key, title and content of every section the run has something for."""
    makers = {
        "quality": ("Accuracy", _quality),
        "comparison": ("Comparison", lambda run: comparison(run, other) if other else None),
        "speed": ("Speed", _speed),
        "layers": ("Layers", _layers),
        "training": ("Training", _training),
        "search": ("Search", _search),
        "examples": ("Examples", _examples),
        "origin": ("Recipe", _origin),
    }
    for key, (title, make) in makers.items():
        if (made := make(run)) is not None:
            lead, *content = made
            yield key, title, section(key, title, lead, *content)


def _quality(run: Run) -> Made:
    if run.summary is None or not run.models:
        return None
    first = run.models[0]
    lead = f"Task {run.summary['task']} on {run.summary['data']}, {first['n']:,} examples{_sameness(run)}."
    if len(run.models) > 1 and run.trains_alone:
        lead += " Only the last model was trained on the task; the others are as they are."
    bars = measurement_picture(f"{first['metric'].capitalize()} by model", run.models)
    pairs = within(run.figures) if run.figures else []
    return lead + _readings(run) + unpaired_words(pairs), bars, agreement(run.figures), pairs_table(pairs)


def _sameness(run: Run) -> str:
    """Say whether all models were asked the same, and in the same words."""
    known, *others = run.figures.values() or [{}]
    if any(apart(known, other) for other in others):
        return ", not the same for every model"
    same, prompts = ", the same for every model", other_prompts(run.figures)
    return f"{same}, but {' and '.join(prompts)} had other prompts, which moves figures too" if prompts else same


def _readings(run: Run) -> str:
    """Return the other readings of the answers: the strict one, say."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in run.models:
        for reading in other_readings(row):
            found[reading["metric"]].append(f"{row['name']} {figure(row['metric'], reading['value'])}")
    return "".join(f" {metric.capitalize()}: {', '.join(figures)}." for metric, figures in found.items())


def _speed(run: Run) -> Made:
    return (speed_words(run.bench), *speed_pictures(run.bench)) if run.bench is not None else None


def _layers(run: Run) -> Made:
    zeros, ranks = run.sparsity, (run.exported or {}).get("ranks") or (run.result or {}).get("chosen", {}).get("ranks")
    words, pictures = list[str](), list[Markup]()
    if zeros is not None:
        config = zeros["config"]
        words.append(f"Pruned by {config['method']}, pattern {config['pattern']}, allocation {config['allocation']}.")
        pictures.append(sparsity_map(zeros["linears"]))
    if ranks:
        words.append(f"The exported sub-adapter has {counted(ranks)}; layers that are alike share a row.")
        pictures.append(rank_map(ranks))
    return (" ".join(words), *pictures) if pictures else None


def _training(run: Run) -> Made:
    if not run.log:
        return None
    tokens = sum(line["tokens"] for line in run.log)
    each = count(tokens / len(run.log))
    lead = f"{run.log[-1]['step']} steps, {count(tokens)} tokens that carry the loss, {each} a step."
    timed = run.timed_steps()
    if seconds := sum(took for _, took in timed):
        rate = sum(line["tokens"] for line, _ in timed) / seconds
        lead += f" The steps took {duration(seconds)}: {digits(rate)} of these tokens a second."
    return lead, *training_pictures(run.log, timed)


def _search(run: Run) -> Made:
    if run.result is None:
        return None
    config, entries, num = run.result.get("config", {}), known(run.result), len(measured(run.result))
    metric, others = objectives_of(run.result)[0], len(run.result["evaluations"]) - len(entries)
    raced = f"; {len(entries) - num} more only estimated, in a race" if len(entries) > num else ""
    unmeasured = (
        f" {others} more break {' and '.join(run.result.get('constraints', []))}: not measured." if others else ""
    )
    lead = (
        f"{config.get('strategy', 'search')} on {config.get('data', 'validation data')}: {num} configurations "
        f"measured, {len(run.result['pareto'])} of them on the front{raced}.{unmeasured}{_gain(run.result)}"
    )
    if not entries:
        return (lead,)
    history = history_picture(metric, entries, max if metric in MAXIMISED else min)
    return lead, front_picture(run.folder, run.result), history


def _gain(result: Record) -> str:
    """Return what the choice is worth on examples that no search saw, where that was measured."""
    if (gain := result.get("gain")) is None:
        return ""
    test, notes = gain["test"], "; ".join(gain["notes"])
    chosen, heuristic = (figure(gain["figure"], test[name]) for name in ("chosen", "heuristic"))
    interval = "{:+.3g} to {:+.3g}".format(*test["ci95"]) if test["ci95"] else "no interval is known"
    found = f"{test['difference']:+.3g}, {interval}"
    words = f" {gain['figure'].capitalize()} on {test['n']:,} test examples: "
    words += f"chosen {chosen}, heuristic {heuristic} ({found})."
    return f"{words} Note: {notes}." if notes else words


def _examples(run: Run) -> Made:
    found = differing(run.figures)
    arrow = " Behind an arrow stands what is read from a text as its answer."
    if run.summary is not None and run.summary["task"] == "equation":
        arrow += " Of an equation, that is the value of what stands left of the equals sign."
    if prompts := other_prompts(run.figures):
        arrow += f" Prompts are those of {next(iter(run.figures))}; {' and '.join(prompts)} had others."
    return (f"Questions that some of the models answer and others do not.{arrow}", *found) if found else None


def _origin(run: Run) -> Made:
    return (
        "What it takes to make this run again.",
        stages_table(run),
        versions_table(run),
        times_table(run),
        recipe_text(run),
    )
