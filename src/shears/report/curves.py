"""Figures over steps: the training loss and speed; what a search had found by each evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

from markupsafe import Markup

from shears.report.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, around, axes, path, stairs, svg
from shears.report.html import element, table
from shears.report.records import Record
from shears.report.searched import raced_on
from shears.report.section import note, picture
from shears.report.words import GAP, count, digits, figure

HEIGHT = 200.0
MOST_POINTS = 200  # of a curve over steps: what a drawing can show
SMOOTHED_OVER = 0.05  # share of the steps that one point of the smooth line is the mean of
RACED = "Hollow: estimated in a race, which tends to flatter; the best so far is of those measured on all examples."

Points = Sequence[tuple[float, float]]


def training_pictures(log: Sequence[Record], timed: Sequence[tuple[Record, float]]) -> list[Markup]:
    """Return the loss of the steps of a training log, and their speed; of steps without times, the tokens in all."""
    others = {"tokens a step": _column(log, "tokens"), "learning rate": _column(log, "learning_rate")}
    loss = _over_steps(("Training loss", "loss per token"), log, _column(log, "loss"), others)
    return [loss, _speed(timed) if timed else _tokens(log)]


def _speed(timed: Sequence[tuple[Record, float]]) -> Markup:
    log, took = [line for line, _ in timed], [seconds for _, seconds in timed]
    rates = [float(line["tokens"]) / max(seconds, 1e-9) for line, seconds in timed]
    return _over_steps(("Speed of training", "completion tokens a second"), log, rates, {"seconds a step": took})


def _tokens(log: Sequence[Record]) -> Markup:
    title, total = "Completion tokens trained on", list(accumulate(_column(log, "tokens")))
    points = [(float(log[last - 1]["step"]), total[last - 1]) for _, last in _parts(len(log), MOST_POINTS)]
    rows = table(title, ("step", "tokens in all"), ((f"{step:.0f}", count(so_far)) for step, so_far in points))
    return _curve(title, ("step", "tokens in all"), {"line": points}, count, (rows, None))


def _column(log: Sequence[Record], name: str) -> list[float]:
    return [float(line[name]) for line in log]


def _over_steps(
    names: tuple[str, str], log: Sequence[Record], values: list[float], others: Mapping[str, Sequence[float]]
) -> Markup:
    """Return figures of steps as a pale line, and their mean over the last steps as a strong one.

    `names` are the picture's and the figures'. The table holds each point drawn, and other figures of its steps.
    """
    width = max(1, round(SMOOTHED_OVER * len(values)))
    smooth = [_mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    parts = [slice(first, last) for first, last in _parts(len(log), MOST_POINTS)]
    steps, pale, line, *rest = ([_mean(column[part]) for part in parts]
                                for column in (_column(log, "step"), values, smooth, *others.values()))  # fmt: skip
    head = ("steps", names[1], f"mean over {width} step{'s' * (width != 1)}", *others)
    rows = (
        (_named(log[part]), *map(digits, figures))
        for part, figures in zip(parts, zip(pale, line, *rest, strict=True), strict=True)
    )
    lines = {"pale": list(zip(steps, pale, strict=True)), "line": list(zip(steps, line, strict=True))}
    return _curve(names[0], ("step", names[1]), lines, digits, (table(names[0], head, rows), None))


def history_picture(metric: str, entries: Mapping[int, Record], best: Callable[[float, float], float]) -> Markup:
    """Return what a search knew of each configuration, by the number of its evaluation, and the best so far.

    What a race estimated has a mark of its own and is never the best. `best` is min or max.
    """
    values = {number: float(entry["metrics"][metric]) for number, entry in entries.items()}
    raced = {number: words for number, entry in entries.items() if (words := raced_on(entry))}
    worst = -best(-math.inf, math.inf)
    ever = list(accumulate((worst if number in raced else value for number, value in values.items()), best))

    def form(value: float) -> str:
        return figure(metric, value) if math.isfinite(value) else "none"

    places = [(float(number), value) for number, value in values.items()]
    lines = {
        "raced": [place for place in places if place[0] in raced],
        "dot": [place for place in places if place[0] not in raced],
        "stairs": [(number, value) for (number, _), value in zip(places, ever, strict=True)],
    }
    rows = ((number, form(values[number]), raced.get(number, "all examples"), form(so_far))
            for number, so_far in zip(values, ever, strict=True))  # fmt: skip
    data = table("Search, in order", ("evaluation", metric, "measured on", "best so far"), rows)
    told = note(RACED) if raced else None
    return _curve(f"Search: {metric} by evaluation", ("evaluation", metric), lines, form, (data, told))


def _curve(
    title: str,
    names: tuple[str, str],
    lines: Mapping[str, Points],
    form: Callable[[float], str],
    below: tuple[Markup, Markup | None],
) -> Markup:
    """`lines` are points by kind, what is drawn first first; `below` are the table and a note."""
    drawn = {kind: [place for place in line if math.isfinite(place[1])] for kind, line in lines.items()}
    steps = [step for line in lines.values() for step, _ in line]
    across = Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    up = Scale(*around([value for line in drawn.values() for _, value in line]), HEIGHT - BOTTOM, TOP + 10)
    parts = [axes(across, up, names, (lambda value: f"{value:,.0f}", form))]
    for kind, line in drawn.items():
        points = [(across(step), up(value)) for step, value in line]
        if kind in ("dot", "raced"):
            parts += [element("circle", cx=x, cy=y, r=3.0, class_=kind) for x, y in points]
        else:
            parts.append(path(stairs(points) if kind == "stairs" else points, "pale" if kind == "pale" else "line"))
    *_, shown = lines.values()
    drawing = svg(f"{title}, from {form(shown[0][1])} to {form(shown[-1][1])}", HEIGHT, *parts)
    return picture(title, drawing, *below)


def _parts(size: int, most: int) -> list[tuple[int, int]]:
    edges = [size * index // min(most, size) for index in range(min(most, size) + 1)]
    return list(pairwise(edges))


def _mean(values: Sequence[int | float]) -> float:
    return sum(values) / len(values)


def _named(part: Sequence[Record]) -> str:
    """Return the first and the last step of some."""
    return " to ".join(f"{name}" for name in dict.fromkeys((part[0]["step"], part[-1]["step"]))).replace(" ", GAP)
