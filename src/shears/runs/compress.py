"""`shears compress`: plan once, then make and measure; the same call resumes an interrupted one."""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from shears.adapt.train import Rows, read_training_rows, train
from shears.checkpoints.without_code import known_config
from shears.config import CompressConfig, TrainConfig
from shears.config.resolve import build
from shears.data.calibration import text_template, text_tokens
from shears.data.forms import trained_template
from shears.data.rows import read_rows
from shears.errors import InputError, reading
from shears.models.load import positions_in, refuse_unknown
from shears.models.ref import ModelRef, load_tokenizer, resolve
from shears.records import artifacts
from shears.records.figures import packages_of
from shears.records.folders import named_folder, refuse_full_disk, refuse_taken, run_lock
from shears.records.paths import expanded
from shears.records.timing import machine, timed
from shears.runs.candidates import (
    LENGTH,
    RULE,
    Amounts,
    Candidate,
    Effort,
    all_candidates,
    best,
    efforts,
    figures_of,
    following,
    meeting,
    recipe_of,
    training_of,
)
from shears.runs.costs import AS_IT_CAME, TEACHER, fitted, left_out, measured_speeds, sentences, stage_seconds
from shears.runs.exam import NEW_TOKENS, ROUNDS, Exam, Texts, answers_of, longest_answer, split_text, task_of_rows
from shears.runs.pipeline import run
from shears.runs.plan import plan, quietly
from shears.runs.shapes import BF16_BYTES, Shape, shape_of
from shears.runtime.forecast import forecast_of

logger = logging.getLogger(__name__)
ATTEMPTS = 3  # candidates that are made at most, until one meets the target
MOST_OUTSIDE = 0.1  # share of a block's weights outside its linears, such as stacked experts
FEW_ROWS = 500  # up to this many a warning says that more would answer better


def compress(model: str | Path, output: str | Path, *, dry_run: bool = False, **config: Any) -> dict[str, Any]:
    """Make a package of `model` that meets a bound in `output`; return the record, COMPRESS there.

    Each candidate is a run in a folder of its own; an interrupted call continues with its plan.
    `dry_run` writes nothing. InputError for a bound that no candidate is predicted to meet.
    All of it runs on the CPU, where packages do.
    """
    began = time.monotonic()
    settings = build(CompressConfig, "compress", config)
    folder = named_folder(expanded(output)).resolve()
    refuse_taken(folder, record=artifacts.COMPRESS)
    if (folder / artifacts.COMPRESS).is_file() and not dry_run:
        ref = resolve(model, "bf16")  # a .gguf file; other models stay as they are
        record = _begun(folder, ref, settings)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            texts = split_text(settings, Path(scratch))
            ref = resolve(model, "bf16")
            ref.refuse_package("compress")
            record = _planned(ref, settings, texts, folder, began)
            if dry_run:
                return record
            folder.mkdir(parents=True, exist_ok=True)
            for file in texts:
                shutil.copyfile(file, folder / file.name)
    with run_lock(folder):
        artifacts.write_json(folder / artifacts.COMPRESS, record)
        work = _Work(folder, record, ref, Effort(**record["effort"]))
        work.measure_dense()
        work.teach()
        promising = _promising(record)
        while len(record["measured"]) < ATTEMPTS and (
            candidate := following(promising, record["measured"], settings.bound, record["parameters"])
        ):
            logger.info("making %s; prediction: %s", candidate.name, figures_of(candidate))
            record["measured"].append(work.made(candidate, settings))
            work.choose()
        work.make_rival(promising, settings)
    return record


def _begun(folder: Path, ref: ModelRef, settings: CompressConfig) -> dict[str, Any]:
    record = artifacts.read_object(folder / artifacts.COMPRESS)
    with reading(folder / artifacts.COMPRESS):
        if not {each["name"] for each in record["measured"]} <= {each.name for each in _promising(record)}:
            raise ValueError("it has measurements of packages that it did not plan")
        artifacts.refuse_changes(folder, record["config"], artifacts.as_data(settings))
        artifacts.check_input(f"model of {folder}", record["base_fingerprint"], ref.fingerprint)
    logger.info("continuing %s by the plan in its %s", folder, artifacts.COMPRESS)
    return record


def _promising(record: Mapping[str, Any]) -> list[Candidate]:
    rows = (row for row in record["candidates"] if row["meets"])
    return [Candidate(**{each.name: row[each.name] for each in fields(Candidate)}) for row in rows]


def _planned(ref: ModelRef, settings: CompressConfig, texts: Texts, folder: Path, began: float) -> dict[str, Any]:
    bound = settings.bound
    shape = _shape(ref)
    forecast = forecast_of(known_config(ref.folder), new_tokens=NEW_TOKENS, rounds=ROUNDS)
    if bound.kind == "tokens/s" and forecast is None:
        needs = "a target in tok/s needs a model that the native decoder supports, and its C++ kernels"
        raise InputError(f"{needs}; set a target in bits or GB")
    dense_speed = forecast.tokens_per_second(0.0, "bf16", "keep") if forecast else None
    candidates = all_candidates(settings, shape, forecast)
    promising = meeting(bound, candidates, shape.parameters)
    first = promising[0]
    training, amounts, exam = _readings(ref, settings, texts)
    found = efforts(amounts, positions_in(known_config(ref.folder)))
    exam = replace(exam, sequence_length=found["quick"].sequence_length)
    speeds = measured_speeds(ref, found["quick"], first, texts, training, exam)

    def total(effort: Effort) -> float:
        return sum(stage_seconds(effort, first, speeds, amounts, exam.windows).values())

    spent = time.monotonic() - began
    missing: list[str] = []
    if settings.seconds is None:
        effort = next(each for name, each in found.items() if name == settings.time)
    else:
        effort = fitted(found, total, settings.seconds - spent)
        missing = left_out(effort, found["thorough"], total(effort) + spent - settings.seconds)
    if missing:
        logger.warning("to save time, the plan leaves out: %s", "; ".join(missing))
    stages = _sizes(first, effort, ref, texts.calibration, folder)
    refuse_full_disk(folder, sum(stages[name]["disk"] or 0 for name in ("sparsify", "export")))
    words = sentences(effort, first, amounts)
    seconds = {"plan": spent, **stage_seconds(effort, first, speeds, amounts, exam.windows)}
    return {
        "shears_version": artifacts.__version__,
        "model": ref.recorded_name,
        "base_fingerprint": ref.fingerprint,
        "config": artifacts.as_data(settings),
        "target": str(bound),
        "machine": machine(),
        "parameters": shape.parameters,
        "dense": {"bytes": shape.file_bytes or BF16_BYTES * shape.parameters, "tokens_per_second": dense_speed},
        "order": RULE,
        "candidates": [
            {"name": each.name, **asdict(each), "meets": each in promising}
            for each in sorted(candidates, key=lambda each: each not in promising)
        ],
        "task": exam.task,
        "longest_answer": exam.longest,
        "template": exam.template,
        "held_out": texts.held_out.name,
        "first": first.name,
        "effort": asdict(effort),
        "left_out": missing,
        "efforts": {name: round(spent + total(each), 1) for name, each in found.items()},
        "speeds": {name: float(f"{value:.3g}") for name, value in speeds._asdict().items()},
        "stages": [
            {"name": name, "work": words[name], "seconds": each, **stages[name]} for name, each in seconds.items()
        ],
        "measured": [],
        "chosen": None,
    }


def _shape(ref: ModelRef) -> Shape:
    shape = shape_of(str(ref.folder))
    assert shape is not None, "the model was resolved"
    inside = shape.parameters - shape.beside
    if inside - shape.linear_weights > MOST_OUTSIDE * inside:
        rule = "compress needs a model whose decoder blocks consist of linear layers"
        raise InputError(f"{rule}, {ref.name} has other weights there, such as experts; use shears run with a recipe")
    return shape


def _readings(ref: ModelRef, settings: CompressConfig, texts: Texts) -> tuple[Rows | None, Amounts, Exam]:
    tokenizer = load_tokenizer(ref)
    training = task = longest = None
    template = trained_template(ref.folder)
    questions = 0
    if settings.data is not None:
        reads = TrainConfig(data=str(texts.calibration))
        with quietly():
            asked = read_rows(str(texts.held_out))
            training = read_training_rows(ref, reads)
        task = task_of_rows(asked, str(settings.test))
        longest = longest_answer(task, training.train)
        template = reads.template
        questions = len(asked)
        if len(training.train) <= FEW_ROWS:
            logger.warning("there are only %d rows to train on; more rows give better answers", len(training.train))
    rows = training.train if training is not None else []
    exam = Exam(texts.held_out, LENGTH, text_template(template, tokenizer), task, longest)
    with quietly():
        text, held_out = (text_tokens(str(file), tokenizer, template=exam.template) for file in texts)
    refuse_unknown(max([*text, *held_out], default=0), known_config(ref.folder).get_text_config().vocab_size)
    row_tokens = sum(len(row.input_ids) for row in rows) / max(len(rows), 1)
    return training, Amounts(len(rows), row_tokens, len(text), len(held_out), questions), exam


def _sizes(
    first: Candidate, effort: Effort, ref: ModelRef, text: Path, folder: Path
) -> dict[str, dict[str, int | None]]:
    own, rival = (
        {stage.name: stage for stage in plan(recipe_of(each, effort, ref, text, None), folder / "x").stages}
        for each in (first, replace(first, sparsity=0.0, values="int4"))
    )
    loaded = own["sparsify"].memory
    training = rival.get("train")
    trained = training.memory if training else None
    sizes: dict[str, tuple[int | None, int | None]] = {
        **{name: (stage.memory, stage.disk) for name, stage in own.items()},
        "plan": (loaded, 0),
        "dense": (loaded, 0),
        "measure": (first.bytes, 0),
        TEACHER: (trained, training.disk if training else None),
        "rival": (trained, sum(stage.disk or 0 for stage in rival.values())),
    }
    return {name: {"memory": memory, "disk": disk} for name, (memory, disk) in sizes.items()}


@dataclass(frozen=True)
class _Work:
    """The work that a record plans; each method does what the record lacks, and writes it there."""

    folder: Path
    record: dict[str, Any]
    ref: ModelRef
    effort: Effort

    @property
    def exam(self) -> Exam:
        template, task, longest = (self.record[key] for key in ("template", "task", "longest_answer"))
        held_out = self.folder / Path(self.record["held_out"]).name
        return Exam(held_out, self.effort.sequence_length, template, task, longest)

    @property
    def text(self) -> Path:
        return self.folder / Path(self.record["held_out"]).name.replace("held_out", "calibration")

    def measure_dense(self) -> None:
        dense, exam = self.record["dense"], self.exam
        if "held_out_loss" in dense:
            return
        with timed(self.folder, "dense"):
            answered = None if exam.task is None else exam.answered(self.ref, AS_IT_CAME, untrained=True)
            dense["answers"] = None if answered is None else answers_of(answered)
            dense["held_out_loss"] = exam.loss(self.ref)
        self.choose()

    def teach(self) -> None:
        if self.effort.teaches and not (self.folder / TEACHER).is_dir():
            with timed(self.folder, TEACHER):
                train(self.ref.folder, self.folder / TEACHER, **artifacts.as_data(training_of(self.effort, self.text)))

    def made(self, candidate: Candidate, settings: CompressConfig) -> dict[str, Any]:
        output = self.folder / candidate.name
        teacher = self.folder / TEACHER if self.effort.teaches else None
        run(recipe_of(candidate, self.effort, self.ref, self.text, teacher), output)
        with timed(output, "measure"):
            figures = self.exam.figures(output / "package")
        weights = self.record["parameters"]
        return {
            "name": candidate.name,
            "package": f"{candidate.name}/package",
            "bits_per_weight": 8 * figures["bytes"] / weights,
            **figures,
            "holds": settings.bound.holds(figures["bytes"], weights, figures["tokens_per_second"]),
        }

    def choose(self) -> None:
        """Name the best package of those that were made, and write the record."""
        self.record["chosen"] = best(packages_of(self.record))
        artifacts.write_json(self.folder / artifacts.COMPRESS, self.record)

    def make_rival(self, promising: list[Candidate], settings: CompressConfig) -> None:
        """Make dense int4, the rival of the chosen or last package; it may be chosen itself."""
        measured = self.record["measured"]
        name = self.record["chosen"] or measured[-1]["name"]
        beside = next((each for each in promising if each.name == name), None)
        if not self.effort.rival or beside is None or not beside.sparsity or self.record.get("rival") is not None:
            return
        rival = replace(beside, sparsity=0.0, values="int4")
        logger.info("making %s, unpruned, to compare with", rival.name)
        known = (each for each in measured if each["name"] == rival.name)
        with timed(self.folder, "rival"):
            self.record["rival"] = next(known, None) or self.made(rival, settings)
        self.choose()
