"""The sections about what the stages of a run recorded: Layers, Training and Recipe."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import yaml
from markupsafe import Markup

from shears.checkpoints.zeros import kinds_of, place_in_block, sparsities
from shears.report.charts import Cells, Points, curves, map_picture
from shears.report.html import element, picture, table
from shears.report.records import Record, Run
from shears.report.words import GAP, count, digits, duration, percent, plural, rank_counts

GROUP = re.compile(r"^(?:.*\.)?(?P<layer>\d+)\.(?P<kind>.+)$")
VALIDATION_LOSS = "validation_loss"  # key of steps that were validated
MOST_POINTS = 200  # of a curve: as many as a drawing can show
SMOOTHED_OVER = 0.05  # share of the steps over which the smooth curve is a mean
INPUTS = ("base", "calibration", "teacher", "data", "super_adapter", "ranks")  # of stages
FINGERPRINTS = {**{f"{name}_fingerprint": name.replace("_", " ") for name in INPUTS}, "fingerprint": "output"}
FINGERPRINT_DIGITS = 12


def layers_section(run: Run) -> tuple[object, ...] | None:
    """Return maps of the zeros and of the exported ranks, with a lead; None without both."""
    words = list[str]()
    maps = list[Markup]()
    if run.sparsity is not None:
        config = run.sparsity["config"]
        words.append(f"Pruned with {config['method']}, pattern {config['pattern']}, allocation {config['allocation']}.")
        if "blocks" in run.sparsity:
            words.append("The kept weights of each block are fitted to the dense model's hidden states.")
        maps.append(_sparsity_map(run.sparsity["linears"]))
    if run.healed is not None:
        steps = plural(run.healed["num_steps"], "step")
        words.append(f"Healed in {steps} on {run.healed['config']['data']}; the zeros are the same.")
    ranks = (run.exported or {}).get("ranks") or (run.result or {}).get("chosen", {}).get("ranks")
    if ranks:
        words.append(f"The exported sub-adapter has {rank_counts(ranks)}; equal layers share a row.")
        maps.append(_rank_map(ranks))
    return (" ".join(words), *maps) if maps else None


def _sparsity_map(linears: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return the share of zeros of each linear; the experts of a layer are counted together."""
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for name, linear in linears.items():
        if (place := place_in_block(name)) is not None:
            weights, zeros = counts.get(place, (0, 0))
            counts[place] = weights + linear["shape"][0] * linear["shape"][1], zeros + linear["zeros"]
    cells = {int(layer): row for layer, row in sparsities(counts)["sparsity_by_linear"].items()}
    return map_picture("Share of zeros by layer and kind of linear", cells, percent) if cells else Markup()


def _rank_map(ranks: Mapping[str, int]) -> Markup:
    """Return the rank of each group; groups outside the layers are left out."""
    by_layer: dict[int, dict[str, float]] = {}
    for name, rank in ranks.items():
        if match := GROUP.match(name):
            by_layer.setdefault(int(match["layer"]), {})[match["kind"]] = float(rank)
    names = kinds_of(kind for row in by_layer.values() for kind in row)
    layers = sorted(by_layer.items())
    cells: Cells = {layer: {name: row[kind] for kind, name in names.items() if kind in row} for layer, row in layers}
    return map_picture("Rank by layer and group", cells, lambda rank: f"{rank:.0f}") if cells else Markup()


def training_section(run: Run) -> tuple[object, ...] | None:
    """Return the loss and speed by step (the tokens if steps have no times); None without a log."""
    if not run.log:
        return None
    tokens = sum(line["tokens"] for line in run.log)
    mean = count(tokens / len(run.log))
    lead = f"{run.log[-1]['step']} steps on {count(tokens)} completion tokens, {mean} a step."
    timed = [(line, run.step_times[line["step"]]) for line in run.log if line["step"] in run.step_times]
    if seconds := sum(took for _, took in timed):
        speed = sum(line["tokens"] for line, _ in timed) / seconds
        lead += f" The steps took {duration(seconds)}, {digits(speed)} completion tokens a second."
    others = {"tokens a step": _column(run.log, "tokens"), "learning rate": _column(run.log, "learning_rate")}
    validation = [line for line in run.log if VALIDATION_LOSS in line]
    lead += _validation_words(validation, run.space or {})
    marks = [(float(line["step"]), float(line[VALIDATION_LOSS])) for line in validation]
    names = ("Training loss", "loss per token")
    loss = _smoothed_picture(names, run.log, _column(run.log, "loss"), others, marks)
    table_of_marks = None
    if validation:
        rows = ((line["step"], digits(line[VALIDATION_LOSS])) for line in validation)
        table_of_marks = table("Validation loss", ("step", "loss per token"), rows)
    if not timed:
        return lead, loss, table_of_marks, _tokens_picture(run.log)
    speeds = [float(line["tokens"]) / max(took, 1e-9) for line, took in timed]
    names = ("Speed of training", "completion tokens a second")
    others = {"seconds a step": [took for _, took in timed]}
    return lead, loss, table_of_marks, _smoothed_picture(names, [line for line, _ in timed], speeds, others)


def _validation_words(lines: Sequence[Record], record: Record) -> str:
    """Return the lowest and the last validation loss in a sentence, empty without a validation."""
    if not lines:
        return ""
    best = min(lines, key=lambda line: float(line[VALIDATION_LOSS]))
    last = lines[-1]
    saved = (record.get("validation") or {}).get("step")
    kept = ", whose adapter was kept" if saved == best["step"] and best is not last else ""
    words = f" The validation loss (dots; at the largest ranks) was lowest after step {best['step']}{kept}: "
    return f"{words}{digits(best[VALIDATION_LOSS])}; at the end it was {digits(last[VALIDATION_LOSS])}."


def _column(log: Sequence[Record], name: str) -> list[float]:
    return [float(line[name]) for line in log]


def _tokens_picture(log: Sequence[Record]) -> Markup:
    title = "Completion tokens trained on"
    names = ("step", "tokens in all")
    totals = list(accumulate(_column(log, "tokens")))
    points = [(float(log[part.stop - 1]["step"]), totals[part.stop - 1]) for part in parts_of(len(log))]
    rows = ((f"{step:.0f}", count(total)) for step, total in points)
    return picture(title, curves(title, names, {"line": points}, count), table(title, names, rows))


def _smoothed_picture(
    names: tuple[str, str],
    log: Sequence[Record],
    values: list[float],
    others: Mapping[str, Sequence[float]],
    marks: Points = (),
) -> Markup:
    """Return the steps' figures as a pale curve and their moving mean as a strong one.

    `names` are those of the picture and of the figures. The table has the points of the curves
    and `others`, further figures of the same steps. `marks` are single figures, drawn as dots.
    """
    width = max(1, round(SMOOTHED_OVER * len(values)))
    smooth = [_mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    parts = parts_of(len(log))
    columns = (_column(log, "step"), values, smooth, *others.values())
    steps, pale, line, *rest = ([_mean(column[part]) for part in parts] for column in columns)
    lines = {"pale": list(zip(steps, pale, strict=True)), "dot": marks, "line": list(zip(steps, line, strict=True))}
    head = ("steps", names[1], f"mean over {plural(width, 'step')}", *others)
    figures = zip(pale, line, *rest, strict=True)
    spans = [dict.fromkeys((log[part][0]["step"], log[part][-1]["step"])) for part in parts]
    rows = ((f"{GAP}to{GAP}".join(map(str, span)), *map(digits, row)) for span, row in zip(spans, figures, strict=True))
    return picture(names[0], curves(names[0], ("step", names[1]), lines, digits), table(names[0], head, rows))


def parts_of(size: int) -> list[slice]:
    """Return at most MOST_POINTS slices of similar length that cover a sequence."""
    num = min(MOST_POINTS, size)
    return [slice(first, last) for first, last in pairwise(size * index // num for index in range(num + 1))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def recipe_section(run: Run) -> tuple[object, ...]:
    """Return what is needed to repeat the run, and how long its stages took."""
    lead = "What is needed to repeat this run."
    text = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    recipe = element("details", element("summary", "The resolved recipe"), element("pre", text, tabindex="0"))
    return lead, _stages_table(run), _versions_table(run), _times_table(run), recipe


def _stages_table(run: Run) -> Markup:
    rows = []
    for stage, record in run.stages():
        values = {name: record.get(key) for key, name in FINGERPRINTS.items()}
        fingerprints = ", ".join(f"{name} {value[:FINGERPRINT_DIGITS]}" for name, value in values.items() if value)
        seed = record.get("config", {}).get("seed", "")
        rows.append((stage, record.get("shears_version", ""), seed, fingerprints))
    return table("Stages", ("stage", "shears", "seed", "inputs and output (sha256)"), rows)


def _versions_table(run: Run) -> Markup | None:
    """Return the versions of each stage, in one row if all are equal; None without any."""
    by_stage = {line["stage"]: _versions(run.times_of(line["stage"])) for line in run.times}
    names = list(dict.fromkeys(name for versions in by_stage.values() for name in versions))
    rows = {stage: tuple(versions.get(name, "not recorded") for name in names) for stage, versions in by_stage.items()}
    if len({*rows.values()}) == 1:
        rows = {"all": next(iter(rows.values()))}
    return table("Versions", ("stage", *names), ((stage, *row) for stage, row in rows.items())) if names else None


def _versions(lines: Sequence[Record]) -> dict[str, str]:
    """Return the version of each package; several if the stage was resumed with another one."""
    versions = dict[str, dict[str, None]]()
    for line in lines:
        for name, version in line.get("versions", {}).items():
            versions.setdefault(name, {})[str(version)] = None
    return {name: "; ".join(each) for name, each in versions.items()}


def _times_table(run: Run) -> Markup | None:
    """Return how long each stage took, and on which of several machines; None without times."""
    if not run.times:
        return None
    head = ["stage", "time", "starts"]
    rows = []
    for stage in dict.fromkeys(line["stage"] for line in run.times):
        lines = run.times_of(stage)
        unfinished = sum(not line["finished"] for line in lines)
        begun = f"{len(lines)}, {unfinished} not finished" if unfinished else f"{len(lines)}"
        rows.append([stage, _total_time(lines), begun, _machines(lines)])
    rows.append(["all", _total_time(run.times), "", ""])
    if len({str(line["machine"]) for line in run.times}) > 1:
        return table("Times", [*head, "machine"], rows)
    return table(f"Times on {_machines(run.times)}", head, [row[:-1] for row in rows])


def _total_time(lines: Sequence[Record]) -> str:
    return duration(sum(float(line["seconds"]) for line in lines))


def _machines(lines: Sequence[Record]) -> str:
    return "; ".join(dict.fromkeys(str(line["machine"]) for line in lines))
