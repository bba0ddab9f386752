"""The verb `write`: text that a model writes, kept as an artifact of rows and a record.

Rows hold `text` or `messages`. A longer text begins with the shorter ones, and is made from them.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from shears.config import WriteConfig
from shears.config.resolve import build
from shears.config.write import WRITTEN
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import end_tokens, load_model, load_tokenizer
from shears.models.properties import num_positions
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.progress import meter
from shears.records.artifacts import WRITTEN_TEXT, as_data, check_input, read_object, write_json
from shears.records.folders import working_folder
from shears.records.journal import append_row, read_rows, write_rows
from shears.records.paths import expanded, file_fingerprint
from shears.records.version import __version__
from shears.runtime.choice import Wanted, native_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.writing.author import Author, TextRow, is_text_row
from shears.writing.writer import TextWriter, first_texts

logger = logging.getLogger(__name__)

CACHED_TEXTS = "self_text"  # in the cache of converted models
TEXT = "text.jsonl"
UNFINISHED = "written.jsonl"  # in the working folder: texts in the order in which they ended
DECIDING = ("chats", "max_new_tokens", "temperature", "seed")  # fields that decide each text; tokens: how many


def write(model: AnyModel, output: str | Path, **config: Any) -> Path:
    """Let a model write text into the folder `output`; return the file of rows in it.

    The keywords are the fields of `WriteConfig`. An interrupted call continues; texts beside
    `output` of the same model and settings are taken over. InputError for a model that cannot be
    used, or that ends its texts at once.
    """
    settings = build(WriteConfig, "write", config)
    ref = resolve(model)
    ref.refuse_package("let write")
    output = expanded(output)
    asked = {"base_fingerprint": ref.fingerprint, **{name: as_data(settings)[name] for name in (*DECIDING, "tokens")}}
    with working_folder(output, asked, resume=True, kind=WriteConfig) as work:
        _take_over(work, output.parent, asked)
        rows = _rows(ref, settings, work / UNFINISHED)
        (work / TEXT).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
        record = {
            "shears_version": __version__,
            "model": ref.recorded_name,
            **asked,
            "num_texts": len(rows),
            "num_chats": sum("messages" in row for row in rows),
            "num_tokens": sum(row["tokens"] for row in rows),
            "text_sha256": file_fingerprint(work / TEXT),
        }
        write_json(work / WRITTEN_TEXT, record)
        (work / UNFINISHED).unlink()
    return output / TEXT


def written_text(model: AnyModel, tokens: int, seed: int, **config: Any) -> Path:
    """Return a file of at least `tokens` tokens that the model writes, from the cache if there.

    Other keywords are those of `write`. The cache's folder is named by all that decides the text.
    """
    settings = build(WriteConfig, "write", {**config, "tokens": tokens, "seed": seed})
    ref = resolve(model)
    deciding = {"base": ref.fingerprint, **{name: as_data(settings)[name] for name in DECIDING}}
    name = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
    output = cache_folder() / CACHED_TEXTS / name / f"{settings.tokens}-tokens"
    if (output / WRITTEN_TEXT).is_file():
        logger.info("taking the text that %s wrote before: %s", ref.name, output)
        return output / TEXT
    output.parent.mkdir(parents=True, exist_ok=True)
    return write(ref, output, **as_data(settings))


def text_source(source: str, model: AnyModel, tokens: int, seed: int) -> str:
    """Return the source of a text: `source` or, where it is `self`, a file that the model writes.

    The file has at least `tokens` tokens. InputError as in `write`.
    """
    return source if source != WRITTEN else str(written_text(model, tokens, seed))


def _take_over(work: Path, siblings: Path, asked: dict[str, Any]) -> None:
    """Begin the journal with the longest finished text beside of the same model and settings."""
    journal = work / UNFINISHED
    if journal.is_file():
        return
    known: list[TextRow] = []
    for record in sorted(siblings.glob(f"*/{WRITTEN_TEXT}")):
        try:
            known = max(known, _finished_rows(record, asked), key=len)
        except (InputError, OSError) as error:
            logger.warning("not taken over: %s", error)
    write_rows(journal, known)


def _finished_rows(record: Path, asked: Mapping[str, Any]) -> list[TextRow]:
    """Return the rows beside a record of the same model and settings; none for another one.

    InputError for a record that `write` did not make, and for a text that changed since.
    """
    before = read_object(record)
    if any(before.get(key) != value for key, value in asked.items() if key != "tokens"):
        return []
    check_input(str(record.parent / TEXT), before.get("text_sha256"), file_fingerprint(record.parent / TEXT))
    return [row for row in read_rows(record.parent / TEXT) if is_text_row(row)]


def _rows(model: ModelRef, settings: WriteConfig, journal: Path) -> list[TextRow]:
    """Return the first texts that hold the tokens asked for; write those that lack."""
    known = {row["number"]: row for row in read_rows(journal) if is_text_row(row)}
    if first_texts(known, settings.tokens) is None:
        author, backend = _open(model, settings)
        num_known = sum(row["tokens"] for row in known.values())
        with meter("writing", settings.tokens, "tokens") as progress:
            progress.skip(min(num_known, settings.tokens))

            def keep(row: TextRow) -> None:
                append_row(journal, row)
                progress.advance(row["tokens"])

            TextWriter(author, backend, known, keep).run()
    rows = first_texts(known, settings.tokens)
    assert rows is not None
    return rows


def _open(model: ModelRef, settings: WriteConfig) -> tuple[Author, Backend]:
    tokenizer = load_tokenizer(model)
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    network = load_model(model, "auto" if device.type == "cpu" else precision, settings.device)
    backend: Backend | None = native_backend(network, Wanted(settings.backend, precision))
    if backend is None:
        backend = TransformersBackend(nn.Module.to(network, DTYPES[precision]))
    ends = end_tokens(tokenizer, network.generation_config)
    longest = min(backend.max_length, num_positions(network) or backend.max_length)
    return Author(tokenizer, ends, longest, settings), backend
