"""The verb `write`: text that a model writes, kept as an artifact of rows and a record.

Rows hold `text` or `messages`. A longer text begins with the shorter ones, and is made from them;
more answers take over those that are there.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import SamplingConfig, WriteConfig
from shears.config.resolve import build
from shears.config.write import ANSWERED, WRITTEN, is_written
from shears.data.example import OWN_NAMES
from shears.data.rows import as_json_lines
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import load_model
from shears.models.properties import num_positions
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.models.tokenizers import end_tokens, load_tokenizer
from shears.records.artifacts import WRITTEN_TEXT, as_data, check_input, read_object, write_json
from shears.records.folders import working_folder
from shears.records.journal import read_rows, write_rows
from shears.records.paths import expanded, file_fingerprint
from shears.records.version import __version__
from shears.runtime.choice import Wanted, native_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.writing.author import TextAuthor
from shears.writing.prompts import Prompts, read_prompts, respondent_of
from shears.writing.writer import Author, Plan, TextRow, is_text_row, written_rows

logger = logging.getLogger(__name__)

CACHED_TEXTS = "self_text"  # in the cache of converted models
TEXT = "text.jsonl"
LEFT_OUT = "left_out.jsonl"  # answers that are not kept, if any
UNFINISHED = "written.jsonl"  # in the working folder: texts in the order in which they ended
DECIDING = ("chats", "max_new_tokens", "temperature", "seed")  # fields that decide each text; tokens: how many
DECIDING_ANSWERS = ("max_new_tokens", "temperature", "seed")
HOW_MANY = ("tokens", "limit", "samples")


@dataclass(frozen=True)
class Job:
    """What is to be written: texts or, if there are prompts, answers to them."""

    settings: WriteConfig
    prompts: Prompts | None
    model: ModelRef

    @property
    def deciding(self) -> dict[str, Any]:
        """Return what decides every text."""
        data = as_data(self.settings)
        base = {"base_fingerprint": self.model.fingerprint}
        if self.prompts is None:
            return {**base, **{name: data[name] for name in DECIDING}}
        own = {name: data[name] for name in DECIDING_ANSWERS}
        return {**base, **own, "prompts_sha256": self.prompts.fingerprint}

    @property
    def asked(self) -> dict[str, Any]:
        """Return what decides every text, and how many there are."""
        data = as_data(self.settings)
        names = ("tokens",) if self.prompts is None else HOW_MANY
        return {**self.deciding, **{name: data[name] for name in names}}

    @property
    def plan(self) -> Plan:
        """Return which texts are wanted."""
        if self.prompts is None:
            return Plan(range(sys.maxsize), self.settings.tokens, lambda row: True)
        return self.prompts.plan(self.settings)

    def author(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], longest: int) -> Author[Any]:
        """Return who begins the texts and makes rows of them."""
        if self.prompts is None:
            return TextAuthor(tokenizer, ends, longest, self.settings)
        options = as_data(self.settings)
        sampling = build(SamplingConfig, "write", {name: options[name] for name in DECIDING_ANSWERS})
        return respondent_of(self.prompts, tokenizer, ends, longest, sampling)


def write(model: AnyModel, output: str | Path, prompts: str | None = None, **config: Any) -> Path:
    """Let a model write text into the folder `output`; return the file of rows in it.

    With `prompts`, a source of rows or chats, the model answers them. Other keywords are the fields
    of `WriteConfig`. An interrupted call continues; texts beside `output` of the same model and
    settings are taken over. InputError for a model that cannot be used, or that ends its texts at
    once, for a row that asks nothing, and if no answer is kept.
    """
    settings = build(WriteConfig, "write", config).for_prompts(prompts)
    asked = None if prompts is None else read_prompts(prompts, settings)
    ref = resolve(model)
    ref.refuse_package("let write")
    job = Job(settings, asked, ref)
    output = expanded(output)
    with working_folder(output, job.asked, resume=True, kind=WriteConfig) as work:
        _take_over(work, output.parent, job)
        rows = _rows(job, work / UNFINISHED)
        kept = [row for row in rows if job.plan.counted(row)]
        if not kept:
            raise InputError(_nothing_kept(settings, rows, work))
        others = [row for row in rows if not job.plan.counted(row)] if asked else []
        _write_lines(work / TEXT, kept)
        if others:
            _write_lines(work / LEFT_OUT, others)
        record = {
            "shears_version": __version__,
            "model": ref.recorded_name,
            **job.asked,
            **(_about_answers(job, rows) if asked else {"num_texts": len(kept)}),
            "num_chats": sum("messages" in row for row in kept),
            "num_tokens": sum(row["tokens"] for row in kept),
            "text_sha256": file_fingerprint(work / TEXT),
        }
        write_json(work / WRITTEN_TEXT, record)
        (work / UNFINISHED).unlink()
    return output / TEXT


def _about_answers(job: Job, rows: Sequence[TextRow]) -> dict[str, Any]:
    """Return what a record says of prompts, and how many of their answers are right, cut, empty, kept."""
    assert job.prompts is not None
    has_rule = any(row["right"] is not None for row in rows)
    cut = sum(row["cut"] for row in rows)
    if cut:
        logger.warning(
            "%d of %d answers were cut at %d tokens; raise max_new_tokens, or leave them out with keep ended", cut,
            len(rows), job.settings.max_new_tokens,
        )  # fmt: skip
    return {
        "prompts": job.prompts.source,
        "columns": dict(job.settings.columns),
        "keep": job.settings.keep,
        "num_prompts": len({row["row"] for row in rows}),
        "num_answers": len(rows),
        "num_kept": sum(map(bool, map(job.plan.counted, rows))),
        "num_right": sum(row["right"] is True for row in rows) if has_rule else None,
        "num_cut": cut,
        "num_empty": sum(not row["tokens"] for row in rows),
    }


def _nothing_kept(settings: WriteConfig, rows: Sequence[TextRow], work: Path) -> str:
    cut = sum(row.get("cut", False) for row in rows)
    what = f"{len(rows)} answers, none of which is {settings.keep}" if settings.keep != "all" else "only empty texts"
    todo = f"--keep all takes those in {work}" if settings.keep != "all" else "give other prompts"
    return f"at least one answer must be kept, got {what} ({cut} were cut); {todo}"


def _write_lines(path: Path, rows: Sequence[TextRow]) -> None:
    path.write_text(as_json_lines(rows), encoding="utf-8")


def written_text(model: AnyModel, tokens: int | None, seed: int, prompts: str | None = None, **config: Any) -> Path:
    """Return a file of at least `tokens` tokens that the model writes, from the cache if there.

    With `prompts`, it holds answers: to all of them, or as many as that takes. Other keywords are
    those of `write`. The cache's folder is named by all that decides the text.
    """
    given = {**config, "tokens": tokens, "seed": seed}
    settings = build(WriteConfig, "write", given).for_prompts(prompts)
    ref = resolve(model)
    job = Job(settings, None if prompts is None else read_prompts(prompts, settings), ref)
    name = hashlib.sha256(json.dumps(job.deciding, sort_keys=True).encode()).hexdigest()[:16]
    parts = [f"{settings.tokens}-tokens" if settings.tokens else "all"]
    if prompts is not None:
        parts += [f"{settings.samples}-samples", settings.keep, *([f"{settings.limit}-rows"] if settings.limit else [])]
    output = cache_folder() / CACHED_TEXTS / name / "-".join(parts)
    if (output / WRITTEN_TEXT).is_file():
        logger.info("taking the text that %s wrote before: %s", ref.name, output)
        return output / TEXT
    output.parent.mkdir(parents=True, exist_ok=True)
    return write(ref, output, prompts, **given)


def text_source(
    source: str, model: AnyModel, tokens: int | None, seed: int, columns: Mapping[str, str] = OWN_NAMES, **config: Any
) -> tuple[str, Mapping[str, str]]:
    """Return a source and its columns; for `self` and `self:FILE` a file that the model writes.

    The file has at least `tokens` tokens, unless the answers to all rows of FILE, which has the
    `columns`, have fewer. Other keywords are those of `write`. InputError as in `write`.
    """
    if not is_written(source):
        return source, columns
    prompts = source.removeprefix(ANSWERED) if source != WRITTEN else None
    given = {**config, "columns": columns} if prompts else {}
    return str(written_text(model, tokens, seed, prompts, **given)), OWN_NAMES


def answers_source(
    source: str, model: AnyModel, seed: int, columns: Mapping[str, str] = OWN_NAMES
) -> tuple[str, Mapping[str, str]]:
    """Return a source of rows and its columns; for `self:FILE` a file with the model's answers to all rows.

    Kept are right answers if every row has an `answer`, else those that ended. InputError as in `write`.
    """
    if not source.startswith(ANSWERED):
        return source, columns
    asked = read_prompts(source.removeprefix(ANSWERED), WriteConfig(columns=dict(columns)))
    keep = "right" if all(row.get("answer") is not None for row in asked.rows) else "ended"
    return text_source(source, model, None, seed, columns, keep=keep)


def _take_over(work: Path, siblings: Path, job: Job) -> None:
    """Begin the journal with the longest finished text beside of the same model and settings."""
    journal = work / UNFINISHED
    if journal.is_file():
        return
    known: list[TextRow] = []
    for record in sorted(siblings.glob(f"*/{WRITTEN_TEXT}")):
        try:
            known = max(known, _finished_rows(record, job.deciding), key=len)
        except (InputError, OSError) as error:
            logger.warning("not taken over: %s", error)
    write_rows(journal, known)


def _finished_rows(record: Path, deciding: Mapping[str, Any]) -> list[TextRow]:
    """Return the rows beside a record of the same model and settings; none for another one.

    InputError for a record that `write` did not make, and for a text that changed since.
    """
    before = read_object(record)
    if any(before.get(key) != value for key, value in deciding.items()):
        return []
    check_input(str(record.parent / TEXT), before.get("text_sha256"), file_fingerprint(record.parent / TEXT))
    files = (record.parent / TEXT, record.parent / LEFT_OUT)
    return [row for file in files for row in read_rows(file) if is_text_row(row)]


def _rows(job: Job, journal: Path) -> list[TextRow]:
    """Return the wanted texts; write those that lack. Answers are in the order of their prompts."""
    rows = written_rows(job.plan, journal, lambda: _open(job))
    return rows if job.prompts is None else sorted(rows, key=lambda row: (row["row"], row["sample"]))


def _open(job: Job) -> tuple[Author[Any], Backend]:
    tokenizer = load_tokenizer(job.model)
    device = pick_device("auto")
    precision = resolved_precision("auto", device)
    network = load_model(job.model, "auto" if device.type == "cpu" else precision)
    backend: Backend | None = native_backend(network, Wanted(precision=precision))
    if backend is None:
        backend = TransformersBackend(nn.Module.to(network, DTYPES[precision]))
    ends = end_tokens(tokenizer, network.generation_config)
    longest = min(backend.max_length, num_positions(network) or backend.max_length)
    return job.author(tokenizer, ends, longest), backend
