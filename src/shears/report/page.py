"""`shears report`, one HTML page that loads nothing else, and `shears compare`."""

import os
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from shears.checkpoints.zeros import kinds_of, place_in_block, sparsities
from shears.config.evaluate_options import MAXIMISED
from shears.config.export_options import FORMAT_OF_RECORD
from shears.config.resolve import parse_yaml
from shears.errors import InputError, option, reading
from shears.evaluation.comparison import compare_arms, files_of, paired, read_arms
from shears.records import artifacts, figures
from shears.records.artifacts import __version__, read_object, read_rows, write_json, write_text
from shears.records.figures import figure, table_rows
from shears.records.paths import expanded
from shears.records.timing import TIMES, real_seconds
from shears.report.pictures import Number, curves, heat_map, intervals, scatter

MOST_EXAMPLES = 8
TIME_COLUMNS = {"stage": "stage", "began": "began", "seconds": "minutes", "finished": "finished", "machine": "machine"}
Record = Mapping[str, Any]


class Section:
    def __init__(self, title: str, *words: str) -> None:
        self.title = title
        self.words = list(words)
        self.pictures: dict[str, str] = {}
        self.tables: dict[str, list[figures.Row]] = {}
        self.texts: dict[str, str] = {}


def write_report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a folder of `run` or `compress` to one HTML file and return its path."""
    folder = expanded(run)
    path = expanded(output) if output is not None else folder / artifacts.REPORT
    if path.suffix != ".html":  # or a record could be overwritten
        raise InputError(f"the output must be an .html file, got {path}; name another")
    with reading(folder):
        lead, *sections = _compression(folder) if (folder / artifacts.COMPRESS).is_file() else _run(folder)
    page = Environment(autoescape=True).from_string(files("shears.report").joinpath("page.html").read_text("utf-8"))
    text = page.render(title=folder.resolve().name, lead=lead.words, sections=sections, version=__version__)
    with option(f"the output {path}"):
        write_text(path, text.encode(errors="replace").decode())  # lone surrogates become ?
    return path


def _run(folder: Path) -> list[Section]:
    file = folder / artifacts.RECIPE
    recipe = (parse_yaml(file.read_text("utf-8")) if file.is_file() else None) or {}

    def record(stage: str, *parts: str) -> Record:
        path = folder.joinpath(*parts)
        return read_object(path) if path.is_file() and recipe.get(stage, stage) is not None else {}

    summary = record("evaluate", artifacts.EVALUATION)
    stages = {
        "sparsify": record("sparsify", "sparse", artifacts.SPARSITY),
        "heal": record("heal", "healed", artifacts.HEALED),
        "train": record("train", "super_adapter", artifacts.SEARCH_SPACE),
        "search": record("search", "search", artifacts.RESULT),
        **{f"export: {form.called}": record("export", form.folder, name) for name, form in FORMAT_OF_RECORD.items()},
    }
    made = {name: content for name, content in stages.items() if content}
    if not made and not summary:
        raise InputError(f"a report needs the folder of a run, got {folder}; shears run makes one")
    sections = [Section("Lead", f"A run of shears on {recipe.get('model', 'a model')}: {', '.join(made)}.")]
    if summary:
        measured = {row["name"]: artifacts.evaluation_file(folder, row["name"]) for row in summary["models"]}
        answers = {name: read_object(path).get("records", []) for name, path in measured.items() if path.is_file()}
        sections[0].words += figures.lead_lines(summary.get("lead"))
        sections += [_accuracy(summary, answers), _examples(answers)]
    sections.append(_layers(made))
    log = read_rows(folder / "super_adapter" / artifacts.TRAINING_LOG)
    if log and recipe.get("train", "train") is not None:
        sections.append(_training(log))
    if stages["search"]:
        sections.append(_search(stages["search"], folder))
    sections.append(_origin(recipe, folder))
    return [each for each in sections if each.words or each.pictures or each.tables or each.texts]


def _accuracy(summary: Record, answers: Mapping[str, list[Record]]) -> Section:
    models = summary["models"]
    metric = models[0]["metric"]
    section = Section("Accuracy", f"Task {summary['task']} on {summary['data']}. Lines show 95 % intervals.")
    section.words += figures.remarks(models)
    section.pictures[f"{metric} by model"] = intervals(models, metric, lambda x: figure(metric, x))
    section.tables["Models"] = figures.model_rows(models)
    *others, last = answers or [""]
    gaps = {f"{last} minus {name}": paired(answers[last], answers[name]) for name in others}
    rows = [figures.difference_row(name, gap) for name, gap in gaps.items() if gap is not None]
    section.tables["Paired differences on the same examples (McNemar's mid-p)"] = rows
    return section


def _examples(answers: Mapping[str, list[Record]]) -> Section:
    section = Section("Examples")
    for records in zip(*answers.values(), strict=False):
        verdicts = {bool(each.get("correct")) for each in records}
        prompts = {each.get("id", each.get("prompt")) for each in records}
        if len(verdicts) == 2 and len(prompts) == 1 and len(section.texts) < MOST_EXAMPLES:
            lines = [str(records[0]["prompt"]), f"\nright answer: {records[0]['answer']}"]
            for name, each in zip(answers, records, strict=True):
                verdict = "right" if each["correct"] else "wrong"
                lines.append(f"\n{name} ({verdict}): {str(each.get('output', '')).strip()} → {each['prediction']}")
            section.texts[f"Example {records[0]['index']}"] = "\n".join(lines)
    return section


def _layers(made: Mapping[str, Record]) -> Section:
    section = Section("Layers")
    if "sparsify" in made:
        config = made["sparsify"]["config"]
        method = ", ".join(f"{name} {config[name]}" for name in ("method", "pattern", "allocation"))
        section.words.append(f"shears set {made['sparsify']['achieved']:.1%} of the weights to zero ({method}).")
        counts: dict[tuple[int, str], tuple[int, int]] = {}
        for name, linear in made["sparsify"]["linears"].items():
            if (place := place_in_block(name)) is not None:
                weights, zeros = counts.get(place, (0, 0))
                counts[place] = (weights + linear["shape"][0] * linear["shape"][1], zeros + linear["zeros"])
        if counts:
            title = "Share of zeros by layer and kind of linear, %"
            section.pictures[title] = heat_map(sparsities(counts)["sparsity_by_linear"], lambda x: f"{100 * x:.1f}")
    ranks = next((each["ranks"] for each in made.values() if each.get("ranks")), None)
    if ranks := ranks or made.get("search", {}).get("chosen", {}).get("ranks"):
        names = kinds_of(name.split(".", 2)[2] for name in ranks)
        cells: dict[str, dict[str, Number]] = {}
        for name, rank in ranks.items():
            _, layer, kind = name.split(".", 2)
            cells.setdefault(layer, {})[names[kind]] = rank
        section.pictures["Rank by layer and group"] = heat_map(cells, lambda rank: f"{rank:.0f}")
    return section


def _training(log: list[Record]) -> Section:
    tokens = sum(line["tokens"] for line in log)
    section = Section("Training", f"shears trained {log[-1]['step']} steps on {tokens:,} completion tokens.")
    width = max(1, len(log) // 20)
    losses = [line["loss"] for line in log]
    means = [sum(losses[max(0, end - width) : end]) / min(width, end) for end in range(1, len(log) + 1)]
    steps = [line["step"] for line in log]
    lines = {"loss": list(zip(steps, losses, strict=True)), f"mean of {width}": list(zip(steps, means, strict=True))}
    if validated := [(line["step"], line["validation_loss"]) for line in log if "validation_loss" in line]:
        lines["validation"] = validated
    section.pictures["Loss"] = curves(lines, "step", "loss per token")
    return section


def _search(result: Record, folder: Path) -> Section:
    config = result["config"]
    tried = result["evaluations"]
    about = f"{len(tried)} configurations on {config['data']} by strategy {config['strategy']}"
    section = Section("Search", f"shears evaluated {about}.")
    names = list(result.get("objectives") or result["chosen"]["metrics"])
    quality = names[0]
    cost = names[-1]
    front = [each["ranks"] for each in result["pareto"]]
    marks: dict[str, list[tuple[Number, Number]]] = {"measured": [], "front": [], "chosen": []}
    rows = []
    for number, each in enumerate(tried, start=1):
        metrics = each["metrics"]
        mark = "front" if each["ranks"] in front else "measured"
        mark = "chosen" if each["ranks"] == result["chosen"]["ranks"] else mark
        if {quality, cost} <= metrics.keys():  # a configuration beyond a bound lacks the quality
            marks[mark].append((metrics[cost], metrics[quality]))
        ranks = "; ".join(f"{kind}: {words}" for kind, words in figures.ranks_by_kind(each["ranks"]).items())
        cells = {name: figure(name, value) for name, value in metrics.items()}
        rows.append((metrics.get(quality, float("nan")), {"number": number, "status": mark, **cells, "ranks": ranks}))
    rows.sort(key=lambda row: row[0], reverse=quality in MAXIMISED)
    section.pictures[f"{quality} over {cost}"] = scatter(marks, cost, quality)
    section.tables["Configurations"] = [row for _, row in rows]
    super_adapter = shlex.quote(str(folder / "super_adapter"))
    ranks = shlex.quote(f"{folder / 'search' / 'result.json'}:NUMBER")
    command = f"shears export {super_adapter} sub_adapter --sub-adapter {ranks}"
    section.words.append(f"To export one of them, run: {command}")
    return section


def _origin(recipe: Record, folder: Path) -> Section:
    section = Section("Recipe", "Use these settings to repeat the run.")
    section.tables["Times"] = table_rows(read_rows(folder / TIMES), TIME_COLUMNS)
    section.texts["The resolved recipe"] = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return section


def _compression(folder: Path) -> list[Section]:
    record = read_object(folder / artifacts.COMPRESS)
    made = f"shears made {len(record['measured'])} of {len(record['candidates'])} candidates"
    chosen = f"{record['chosen']} meets the target" if record["chosen"] else "none has met the target yet"
    lead = Section("Lead", f"{record['model']}, compressed to {record['target']}: {made}, and {chosen}.")
    where = f"Losses are in nats per token on {record['held_out']}, speeds were measured on {record['machine']}."
    measured = Section("Measured", f"{where} The dense model's speed in bf16 is predicted.")
    for key, name, unit in (("bytes", "size, MB", 1e6), ("tokens_per_second", "tokens per second", 1.0)):
        known = [each for each in figures.measured_models(record) if each.get(key) and each.get("loss") is not None]
        names = [(each["name"], each[key] / unit, each["loss"]) for each in known]
        marks: dict[str, list[tuple[Number, Number]]] = {"dense": [], "measured": [], "chosen": []}
        kinds = {"dense": "dense", record["chosen"]: "chosen"}
        for label, x, loss in names:
            marks[kinds.get(label, "measured")].append((x, loss))
        if len(known) > 1:
            measured.pictures[f"Loss over {name}"] = scatter(marks, name, "loss, nats per token", names)
    measured.tables["Measured"] = figures.measured_rows(record)
    plan = Section("Plan")
    plan.tables["Plan"] = figures.plan_rows(record, real_seconds(folder, record))
    candidates = Section("Predicted candidates", f"The order is {record['order']}.")
    candidates.words.append("A name such as s50-int4-int8 means 50% zeros, int4 weights and int8 embeddings.")
    candidates.tables["Candidates"] = table_rows(record["candidates"], figures.CANDIDATES)
    return [lead, measured, plan, candidates]


def compare(runs: Sequence[str], *, against: str | None = None, output: str | Path | None = None) -> dict[str, Any]:
    """Return the comparison of runs; also write it to the JSON file `output`."""
    path = expanded(output) if output is not None else None
    if path is not None and path.suffix != ".json":
        raise InputError(f"the output must be a .json file, got {path}; name another")
    arms = read_arms(runs)
    if path is not None and Path(os.path.realpath(path)) in files_of(runs, arms):
        raise InputError(f"the output must not be one of the compared files, got {path}; name another")
    data = compare_arms(arms, against)
    if path is not None:
        with option(f"the output {path}"):
            write_json(path, data)
    return data
