"""Figures over steps: the training loss and speed; what a search had found by each evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

from markupsafe import Markup

from shears.report.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, around, axes, path, stairs, svg
from shears.report.html import element, table
from shears.report.records import Record
from shears.report.section import picture
from shears.report.words import GAP, count, digits, figure

HEIGHT = 200.0
MOST_POINTS, MOST_ROWS = 200, 24
SMOOTHED_OVER = 0.05  # share of the steps that one point of the smooth line is the mean of


def training_pictures(log: Sequence[Record], timed: Sequence[tuple[Record, float]]) -> list[Markup]:
    """Return the loss of the steps of a training log, and their speed; of steps without times, the tokens in all."""
    steps, losses = _column(log, "step"), _column(log, "loss")
    rows = _table("Training, mean over the steps named", log)
    loss = _curve("Training loss", ("step", "loss per token"), steps, _smoothed(losses), digits, rows)
    return [loss, _speed(timed) if timed else _tokens(log, rows)]


def _speed(timed: Sequence[tuple[Record, float]]) -> Markup:
    steps = [float(line["step"]) for line, _ in timed]
    rates = [float(line["tokens"]) / max(seconds, 1e-9) for line, seconds in timed]
    parts = (timed[first:last] for first, last in _parts(len(timed), MOST_ROWS))
    rows = table("Speed, over the steps named", ("steps", "seconds a step", "tokens a second"), map(_timed_row, parts))
    return _curve("Speed of training", ("step", "completion tokens a second"), steps, _smoothed(rates), digits, rows)


def _tokens(log: Sequence[Record], rows: Markup) -> Markup:
    total = list(accumulate(_column(log, "tokens")))
    names = ("step", "tokens in all")
    return _curve("Completion tokens trained on", names, _column(log, "step"), {"line": total}, count, rows)


def _column(log: Sequence[Record], name: str) -> list[float]:
    return [float(line[name]) for line in log]


def _smoothed(values: list[float]) -> dict[str, list[float]]:
    """Return figures as a pale line, and their mean over the last steps as a strong one."""
    width = max(1, round(SMOOTHED_OVER * len(values)))
    parts = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return {"pale": values, "line": [sum(part) / len(part) for part in parts]}


def history_picture(metric: str, seen: Mapping[int, float], best: Callable[[float, float], float]) -> Markup:
    """Return every value a search saw, by the number of its evaluation, and the best so far (`best` is min or max)."""
    numbers, values = [float(number) for number in seen], list(seen.values())
    ever = list(accumulate(values, best))
    rows = [(f"{index:.0f}", figure(metric, value), figure(metric, so_far))
            for index, value, so_far in zip(numbers, values, ever, strict=True)]  # fmt: skip
    data = table("Search, in order", ("evaluation", metric, "best so far"), rows)

    def form(value: float) -> str:
        return figure(metric, value)

    lines = {"dots": values, "stairs": ever}
    return _curve(f"Search: {metric} by evaluation", ("evaluation", metric), numbers, lines, form, data)


def _curve(
    title: str,
    names: tuple[str, str],
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    form: Callable[[float], str],
    data: Markup,
) -> Markup:
    across = Scale(min(x), max(x), LEFT, WIDTH - RIGHT)
    up = Scale(*around([value for line in lines.values() for value in line]), HEIGHT - BOTTOM, TOP + 10)
    parts = [axes(across, up, names, (lambda value: f"{value:,.0f}", form))]
    for kind, line in lines.items():
        points = [(across(a), up(b)) for a, b in zip(*_thinned(x, line), strict=True) if math.isfinite(b)]
        if kind == "dots":
            parts += [element("circle", cx=a, cy=b, r=3.0, class_="dot") for a, b in points]
        else:
            parts.append(path(stairs(points) if kind == "stairs" else points, "line" if kind == "stairs" else kind))
    *_, shown = lines.values()
    drawing = svg(f"{title}, from {form(shown[0])} to {form(shown[-1])}", HEIGHT, *parts)
    return picture(title, drawing, data)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return as many points as a drawing can show: means over neighbours."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = [slice(first, last) for first, last in _parts(len(x), MOST_POINTS)]
    return [_mean(x[part]) for part in parts], [_mean(y[part]) for part in parts]


def _parts(size: int, most: int) -> list[tuple[int, int]]:
    edges = [size * index // min(most, size) for index in range(min(most, size) + 1)]
    return list(pairwise(edges))


def _mean(values: Sequence[int | float]) -> float:
    return sum(values) / len(values)


def _timed_row(part: Sequence[tuple[Record, float]]) -> tuple[str, str, str]:
    seconds, tokens = sum(took for _, took in part), sum(line["tokens"] for line, _ in part)
    return _named([line for line, _ in part]), digits(seconds / len(part)), digits(tokens / max(seconds, 1e-9))


def _named(part: Sequence[Record]) -> str:
    """Return the first and the last step of some."""
    return " to ".join(f"{name}" for name in dict.fromkeys((part[0]["step"], part[-1]["step"]))).replace(" ", GAP)


def _table(title: str, log: Sequence[Record]) -> Markup:
    rows = []
    for first, last in _parts(len(log), MOST_ROWS):
        part = log[first:last]
        rows.append((
            _named(part), digits(_mean([line["loss"] for line in part])),
            digits(_mean([line["tokens"] for line in part])), digits(_mean([line["learning_rate"] for line in part])),
        ))  # fmt: skip
    return table(title, ("steps", "loss", "tokens a step", "learning rate"), rows)
