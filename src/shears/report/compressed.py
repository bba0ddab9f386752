"""The report of a `compress` folder: loss and right answers over size and speed, candidates, times."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shears.records.artifacts import COMPRESS, read_object
from shears.records.figures import answered_words, packages_of
from shears.records.timing import read_times
from shears.report.charts import CURVE_HEIGHT, WIDTH, plane, svg, text
from shears.report.html import asset, document, element, note, picture, section, table
from shears.report.records import Record
from shears.report.words import digits, duration, rate, size

LEGEND = "s50-int4-int8: 50% zeros, weights in int4, embeddings in int8."
CLOSE = 90.0  # lengths right of a point that its name takes
KEY = "Grey: the dense model; its speed in bf16 is predicted."
Axis = tuple[str, str, Callable[[float], str]]  # key of a record, name, format
AXES: tuple[Axis, ...] = (
    ("bytes", "size of the file", size),
    ("tokens_per_second", "tokens a second", rate),
)


def is_compressed(folder: Path) -> bool:
    """Tell whether a folder is one of `compress`."""
    return (folder / COMPRESS).is_file()


def compressed_page(folder: Path) -> str:
    """Return the report of a `compress` folder as HTML."""
    record = read_object(folder / COMPRESS)
    rows = list(measured_rows(record))
    lead = f"{record['model']} compressed to {record['target']}. {_outcome(record)}"
    where = f"Loss in nats a token on {record['held_out']}, speed on {record['machine']}. {KEY}"
    pictures = [drawn for axis in AXES if (drawn := _picture(rows, axis)) is not None]
    predicted = f"Ordered by {record['order']}. Added loss is in nats a token above the dense model's."
    title = folder.resolve().name
    body = element(
        "body",
        element("header", element("h1", title), element("p", lead)),
        element(
            "main",
            section("measured", "Measured", where, *pictures, _measured_table(rows, record)),
            *_plan(folder, record),
            section("candidates", "Candidates as predicted", predicted, _candidates(record)),
        ),
    )
    return document(title, body, asset("style.css"))


def measured_rows(record: Record) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of the dense model and of every candidate made."""
    dense = record["dense"]
    yield {**dense, "name": "dense", "loss": dense.get("held_out_loss"), "mark": "seen"}
    taught = record.get("teacher")
    if taught is not None and taught["answers"] is not None:
        yield {**dense, "name": "dense, fine-tuned", "loss": None, "answers": taught["answers"], "mark": "seen"}
    yield from (
        {**row, "mark": "chosen" if row["name"] == record["chosen"] else "front"} for row in packages_of(record)
    )


def _outcome(record: Record) -> str:
    if not record["measured"]:
        return "No candidate was made yet."
    made = f"{len(record['measured'])} of {len(record['candidates'])} candidates made"
    if record["chosen"] is None:
        return f"None met the target; {made}."
    return f"{record['chosen']} meets the target; {made}."


def _picture(rows: list[Mapping[str, Any]], axis: Axis) -> Markup | None:
    """Return the loss over one figure; None for fewer than two points."""
    key, name, form = axis
    points = [row for row in rows if row.get(key) is not None and row.get("loss") is not None]
    if len(points) < 2:
        return None
    places = [(float(row[key]), row["loss"]) for row in points]
    across, up, both = plane(places, (name, "loss, nats a token"), (form, digits), margin=0.1)
    title = f"Loss over {name}"
    parts = [both, *(_point(row, across(row[key]), up(row["loss"]), form(row[key])) for row in points)]
    cells = ((row["name"], form(row[key]), digits(row["loss"])) for row in points)
    data = table(title, ("package", name, "loss"), cells)
    return picture(title, svg(title, CURVE_HEIGHT, *parts), data)


def _point(row: Mapping[str, Any], x: float, y: float, value: str) -> Markup:
    is_right = x + CLOSE > WIDTH
    label = text(x - 7 if is_right else x + 7, y + 3.5, row["name"], "end" if is_right else "start")
    spoken = element("title", f"{row['name']}: {value}, loss {digits(row['loss'])}")
    return element("g", spoken, element("circle", cx=x, cy=y, r=4.5, class_=row["mark"]), label)


def _measured_table(rows: list[Mapping[str, Any]], record: Record) -> Markup:
    def cells(row: Mapping[str, Any]) -> tuple[object, ...]:
        speed = row.get("tokens_per_second")
        loss = row.get("loss")
        bits = f"{8 * row['bytes'] / record['parameters']:.2f}"
        answers = row.get("answers")
        holds = "" if row.get("holds") is None else "yes" if row["holds"] else "no"  # only candidates have a verdict
        return (
            row["name"], size(row["bytes"]), bits, "unknown" if speed is None else rate(speed),
            "unknown" if loss is None else digits(loss), answered_words(answers) if answers else "", holds,
        )  # fmt: skip

    head = ("package", "size", "bits a weight", "tokens a second", "loss", "right answers", "meets the target")
    return table("Measured", head, map(cells, rows))


def _plan(folder: Path, record: Record) -> list[Markup]:
    """Return the section of the plan: what each stage did, minutes planned and real; none without times."""
    stages = [stage for stage in record.get("stages", []) if stage["seconds"] is not None]
    if not stages or "effort" not in record:
        return []
    real = real_seconds(folder, record)
    rows = [
        (stage["name"], stage["work"], duration(stage["seconds"]), _taken(real.get(stage["name"]))) for stage in stages
    ]
    rows.append(("all", "", duration(sum(stage["seconds"] for stage in stages)), _taken(sum(real.values()))))
    lead = f"The plan is {record['effort']['name']}, from speeds measured on this machine before it began."
    return [section("plan", "Plan", lead, table("Plan", ("stage", "what it did", "planned", "real"), rows))]


def _taken(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def real_seconds(folder: Path, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds that each stage of a compression has taken, by the names of its plan."""
    seconds = {stage["name"]: stage["seconds"] for stage in record.get("stages", []) if stage["name"] == "plan"}
    folders = [folder, *(folder / each["name"] for each in record["measured"])]
    for line in (line for each in folders for line in read_times(each)):
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
    return seconds


def _candidates(record: Record) -> Markup:
    def cells(each: Mapping[str, Any]) -> tuple[object, ...]:
        speed = each["tokens_per_second"]
        loss = each["added_loss"]
        return (
            each["name"], size(each["bytes"]), f"{each['bits_per_weight']:.2f}",
            "unknown" if speed is None else rate(speed), "unknown" if loss is None else f"{loss:+.4f}",
            "yes" if each["meets"] else "no",
        )  # fmt: skip

    head = ("candidate", "size", "bits a weight", "tokens a second", "added loss", "meets the target")
    return element("div", table("Candidates", head, map(cells, record["candidates"])), note(LEGEND))
