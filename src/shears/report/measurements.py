"""The sections about what evaluation and bench measured: Accuracy, Ranks, Examples and Speed."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice, zip_longest

from markupsafe import Markup

from shears.config.evaluate import BASELINES
from shears.records.figures import cut_at_ranks, cut_words, other_readings
from shears.report.charts import CURVE_HEIGHT, interval_dots, measurement_bars, plane, polyline, svg, whisker
from shears.report.html import element, note, picture, table
from shears.report.pairs import aligned, correct, incomparable, other_prompts, pairs_table, unpaired_words
from shears.report.records import Record, Run
from shears.report.words import GAP, count, figure, interval, percent, plural, points, rate, size

MOST_EXAMPLES = 8
MOST_PATTERNS = 8  # as many as three models can have
MOST_CHARACTERS = 1500  # of a text
RANKS_TITLE = "Accuracy over rank"
DENSE_IN_TRANSFORMERS = "dense, transformers"  # prefix of the names of two contestants of a bench

Pattern = tuple[bool, ...]  # of an example: which models are right
Spread = Mapping[str, float]  # median, min and max over the rounds of a bench


def accuracy_section(run: Run) -> tuple[object, ...] | None:
    """Return the lead, picture and tables of accuracies; None if there are none."""
    if run.summary is None or not run.models:
        return None
    first = run.models[0]
    lead = f"Task {run.summary['task']} on {run.summary['data']}, {first['n']:,} examples{_sameness(run)}."
    if len(run.models) > 1 and run.only_run_trained:
        baselines = [row["name"] for row in run.models[:-1] if row["name"] in BASELINES]
        trained = f"{', '.join(baselines)} and {run.models[-1]['name']} were" if baselines else "the last model was"
        lead += f" Only {trained} trained on the task."
    last = run.models[-1]["name"]
    others = [row["name"] for row in run.references if {row["name"], last} <= run.figures.keys()]
    pairs = [(f"{last} against {other}", run.figures[last], run.figures[other]) for other in others]
    bars = measurement_bars(f"{first['metric'].capitalize()} by model", run.models)
    return lead + _readings(run) + unpaired_words(pairs), bars, _agreement(run.figures), pairs_table(pairs)


def _sameness(run: Run) -> str:
    """Return in words whether all models had the same questions and prompts."""
    first, *others = run.figures.values() or [{}]
    if any(incomparable(first, other) for other in others):
        return ", not the same for every model"
    prompts = other_prompts(run.figures)
    same = ", the same for every model"
    return f"{same}, but {' and '.join(prompts)} had other prompts, which also changes figures" if prompts else same


def _readings(run: Run) -> str:
    """Return the figures of other readings of the answers, such as the strict one, and cut answers, in sentences."""
    figures: dict[str, list[str]] = defaultdict(list)
    for row in run.models:
        for reading in other_readings(row):
            figures[reading["metric"]].append(f"{row['name']} {figure(row['metric'], reading['value'])}")
    readings = "".join(f" {metric.capitalize()}: {', '.join(values)}." for metric, values in figures.items())
    return f"{readings} {cut_words(run.models)}".rstrip()


def _agreement(figures: Mapping[str, Record]) -> Markup | None:
    """Return how many examples which models answer rightly; None if they cannot be paired."""
    patterns = _patterns(figures)
    counts = Counter(patterns).most_common()
    rows: list[tuple[object, ...]] = [(count, *map(_verdict, pattern)) for pattern, count in counts[:MOST_PATTERNS]]
    if others := counts[MOST_PATTERNS:]:
        rows.append(
            (sum(count for _, count in others), plural(len(others), "other pattern"), *[""] * (len(figures) - 1))
        )
    return table("Examples by which models are right", ("examples", *figures), rows) if patterns else None


def _patterns(figures: Mapping[str, Record]) -> list[Pattern]:
    if len(figures) < 2:
        return []
    return list(zip(*map(correct, aligned(list(figures.values()))), strict=True))


def _verdict(is_right: bool) -> Markup:
    word = "right" if is_right else "wrong"
    return element("span", word, class_=word)


def examples_section(run: Run) -> tuple[object, ...] | None:
    """Return a lead and examples on which some models are right and others wrong; None without any.

    The examples alternate between the patterns of right and wrong.
    """
    records = aligned(list(run.figures.values()))
    indices = _alternating(_patterns(run.figures))
    examples = [_example(list(run.figures), [each[index] for each in records]) for index in indices]
    if not examples:
        return None
    lead = "Questions that some models answer correctly and others do not."
    lead += " After an arrow stands the answer that was read from the model's text."
    if run.summary is not None and run.summary["task"] == "equation":
        lead += " For an equation, that is the value of its left side."
    if prompts := other_prompts(run.figures):
        lead += f" The prompts are those of {next(iter(run.figures))}; {' and '.join(prompts)} had other ones."
    return lead, *examples


def _alternating(patterns: Sequence[Pattern]) -> list[int]:
    """Return indices of examples on which models differ, one of each pattern in turn."""
    differing = sorted(pattern for pattern in set(patterns) if len(set(pattern)) > 1)
    queues = [[index for index, pattern in enumerate(patterns) if pattern == each] for each in differing]
    in_turn = (index for turn in zip_longest(*queues) for index in turn if index is not None)
    return list(islice(in_turn, MOST_EXAMPLES))


def _example(names: Sequence[str], records: Sequence[Record]) -> Markup:
    first = records[0]
    answers = (
        element("div", element("dt", name, " ", _verdict(bool(record["correct"]))), element("dd", _answer(record)))
        for name, record in zip(names, records, strict=True)
    )
    expected = element("div", element("dt", "answer"), element("dd", _plain(first["answer"])))
    prompt = element("pre", _shortened(first["prompt"]), tabindex="0")
    return element("article", element("h3", f"Example {first['index']}"), prompt, element("dl", expected, *answers))


def _answer(record: Record) -> str:
    """Return the text that a model wrote and the answer that was read from it."""
    output = record.get("output")
    answer = _plain(record["prediction"])
    if not isinstance(output, str) or output.strip() == answer:
        return _shortened(answer)
    return _shortened(f"{output.strip() or 'no text'} → {answer}")


def _plain(value: object) -> str:
    if value is None:
        return "no answer found"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _shortened(content: object) -> str:
    text = str(content)
    rest = len(text) - MOST_CHARACTERS
    return text if rest <= 0 else f"{text[:MOST_CHARACTERS]} … ({rest} characters more)"


def ranks_section(run: Run) -> tuple[object, ...] | None:
    """Return the lead and the curve of accuracy over rank; None if the run did not measure it."""
    if run.ranks is None or not (curve := run.ranks.get("curve")):
        return None
    low, high = curve["aurac_ci95"]
    area = f"{percent(curve['aurac'])} ({percent(low)} to {percent(high)})"
    lead = (
        f"One super-adapter, all groups at the same rank, on the same {plural(run.ranks['n'], 'question')}. The area "
        f"under the curve over its span of ranks (AURAC) is {area}: the mean accuracy of all ranks in it. These are "
        "test questions: no rank was chosen by them."
    )
    lead = f"{lead} {cut_at_ranks(curve)}".rstrip()
    return lead, picture(RANKS_TITLE, _rank_curve(curve["points"]), _rank_table(curve["points"]))


def _rank_curve(curve: list[Record]) -> Markup:
    """Return accuracies with their intervals over rank, joined by lines."""
    ends = [(float(point["rank"]), end) for point in curve for end in point["ci95"]]
    across, up, both = plane(ends, ("rank", "accuracy"), (lambda value: f"{value:,.0f}", percent))
    parts = [both]
    parts.append(polyline([(across(point["rank"]), up(point["value"])) for point in curve], "line"))
    for point in curve:
        place = across(point["rank"])
        spoken = f"rank {point['rank']}: {percent(point['value'])}, {interval({'metric': 'accuracy', **point})}"
        low, high = (up(end) for end in point["ci95"])
        dot = element("circle", cx=place, cy=up(point["value"]), r=4.0, class_="bar")
        parts.append(element("g", element("title", spoken), whisker(place, low, high), dot))
    ends_in_words = f"{percent(curve[-1]['value'])} at the smallest rank to {percent(curve[0]['value'])} at the largest"
    return svg(f"{RANKS_TITLE}, from {ends_in_words}", CURVE_HEIGHT, *parts)


def _rank_table(curve: list[Record]) -> Markup:
    rows = []
    for point in curve:
        gap = point["difference"] or {}
        ends = f" ({points(gap['ci95'][0])} to {points(gap['ci95'][1])})" if gap else ""
        minus = f"{points(gap['value'])}{ends}" if gap else "none"
        p = f"{gap['p_holm']:.3f}" if gap else "none"
        figures = (percent(point["value"]), interval({"metric": "accuracy", **point}))
        rows.append((point["rank"], count(point["parameters"]), *figures, minus, p))
    head = ("rank", "parameters", "accuracy", f"95{GAP}% interval", "minus the largest, points", "p, Holm")
    return table(RANKS_TITLE, head, rows)


def speed_section(run: Run) -> tuple[object, ...] | None:
    """Return the lead and pictures of `shears bench --json`; None without a bench.json."""
    if (bench := run.bench) is None:
        return None
    lead = (
        f"{bench['package']} on {bench['cpu']}, {plural(bench['threads'], 'thread')}: decoding {bench['new_tokens']} "
        f"tokens after a prompt, and reading a prompt of {bench['prompt_tokens']} tokens. The models took turns."
    )
    memory = [size(row["memory_bytes"]) for row in bench["contestants"]]
    first_token = [_spread(row["time_to_first_token_seconds"], 1e3) for row in bench["contestants"]]
    decoding = _speed_picture("decoding", "decode_tokens_per_second", bench, ("memory", memory))
    reading = _speed_picture("reading a prompt", "prefill_tokens_per_second", bench, ("first token, ms", first_token))
    return lead, decoding, reading


def _speed_picture(task: str, key: str, bench: Record, other: tuple[str, Sequence[str]]) -> Markup:
    """Return the speeds of the contestants; `other` is a further column of the table."""
    title = f"Tokens a second, {task}"
    speeds = {row["name"]: row[key] for row in bench["contestants"]}
    dots = [
        {"name": name, "value": speed["median"], "ci95": [speed["min"], speed["max"]]} for name, speed in speeds.items()
    ]
    rows = [(name, _spread(speed), cell) for (name, speed), cell in zip(speeds.items(), other[1], strict=True)]
    below = note(f"Dots are medians of {bench['rounds']} rounds, whiskers the slowest and the fastest round.")
    data = table(title, ("model", "tokens/s", other[0]), rows)
    return picture(title, interval_dots(title, dots, rate, zero=True), data, below)


def _spread(spread: Spread, factor: float = 1.0) -> str:
    middle, low, high = (rate(factor * spread[key]) for key in ("median", "min", "max"))
    return f"{middle} ({low} to {high})"


def speedup_over_dense(run: Run) -> Spread | None:
    """Return the package's speed over the fastest dense model in transformers; None if unknown."""
    ratios = run.bench["ratios"] if run.bench is not None else []
    ratios = [row["decode"] for row in ratios if row["over"].startswith(DENSE_IN_TRANSFORMERS)]
    return min(ratios, key=lambda spread: float(spread["median"])) if ratios else None
