"""The verb `write`: text that a model writes, kept as an artifact of rows and a record."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.checkpoints.without_code import known_config
from shears.config import WriteConfig
from shears.config.resolve import build
from shears.config.serve_options import ANSWERED, WRITTEN, is_written
from shears.data.examples import row_named
from shears.data.forms import trained_form
from shears.data.rows import OWN_NAMES, Row, as_json_lines, read_rows
from shears.data.rules import rule_of
from shears.data.templates import TO_REASON
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import load_with_adapter, positions_in
from shears.models.ref import AnyModel, ModelRef, end_tokens, load_tokenizer, resolve_with
from shears.progress import meter
from shears.records import artifacts as journal
from shears.records.artifacts import WRITTEN_TEXT, __version__, write_json
from shears.records.folders import working_folder
from shears.records.paths import expanded, file_fingerprint
from shears.runtime.backend import Backend
from shears.runtime.batch import Batch
from shears.runtime.continuation import Continuation, TextSettings
from shears.runtime.engine import decoding_by
from shears.runtime.loading import Wanted, generation_settings, native_backend, package_backend
from shears.runtime.transformers_backend import TransformersBackend
from shears.writing.authors import AnswerAuthor, Author, TextAuthor, asked_turns

logger = logging.getLogger(__name__)

CACHED_TEXTS = "self_text"  # in the cache of converted models
TEXT = "text.jsonl"
UNFINISHED = "written.jsonl"  # in the working folder: texts in the order in which they ended
MOST_EMPTY = 64  # consecutive empty texts after which the model counts as unable to write


def write(
    model: AnyModel,
    output: str | Path,
    prompts: str | None = None,
    adapter: str | Path | None = None,
    **config: Any,
) -> Path:
    """Let a model write text into the folder `output`; return the file of rows in it.

    With `prompts`, a source of rows or chats, the model answers them, in the form of its training's
    rows, if there was one. Other keywords are the fields of `WriteConfig`. An interrupted call
    continues.
    """
    settings = build(WriteConfig, "write", config).for_prompts(prompts)
    rows = None if prompts is None else read_rows(prompts, settings.columns)
    for number, row in enumerate(rows or [], start=1):
        with row_named(number, str(prompts)):
            asked_turns(row)
            if settings.keep == "right":
                rule_of(row)
    ref = resolve_with(model, adapter, "auto")
    output = expanded(output)
    asked = _asked(ref, adapter, settings, rows)
    decided = {key: value for key, value in asked.items() if key != "keep"}
    with working_folder(output, decided) as work:
        tokenizer, text_settings, backend = _open(ref, adapter, settings.device)
        author: Author
        if rows is None:
            author = TextAuthor(tokenizer, text_settings, settings)
        else:
            author = AnswerAuthor(tokenizer, text_settings, settings, rows, trained_form(adapter, ref.folder))
        written = written_rows(author, backend, settings.tokens, work / UNFINISHED)
        kept = sorted(filter(author.is_kept, written), key=lambda row: (row.get("row", row["number"]), row["number"]))
        counts = {
            "num_right": sum(row.get("right") is True for row in written),
            "num_cut": sum(row.get("cut", False) for row in written),
            "num_empty": sum(not row["tokens"] for row in written),
        }
        if not kept:
            rule = f"at least one of {len(written)} answers must be {settings.keep}, none is"
            raise InputError(f"{rule}; use --keep all to keep every answer")
        (work / TEXT).write_text(as_json_lines(kept), encoding="utf-8")
        record = {
            "shears_version": __version__,
            "model": ref.recorded_name,
            **asked,
            **({} if rows is None else {"prompts": prompts, "num_answers": len(written), **counts}),
            "num_texts": len(kept),
            "num_chats": sum("messages" in row for row in kept),
            "num_tokens": sum(row["tokens"] for row in kept),
            "text_sha256": file_fingerprint(work / TEXT),
        }
        write_json(work / WRITTEN_TEXT, record)
        (work / UNFINISHED).unlink()
    return output / TEXT


def _asked(ref: ModelRef, adapter: str | Path | None, settings: WriteConfig, rows: Any) -> dict[str, Any]:
    asked = {"base_fingerprint": ref.fingerprint, **settings.model_dump(mode="json", exclude={"device"})}
    if adapter is not None:
        asked["adapter_fingerprint"] = file_fingerprint(*sorted(Path(adapter).glob("*.safetensors")))
    if rows is not None:
        content = json.dumps([TO_REASON, *rows], sort_keys=True, default=str)
        asked["prompts_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    return asked


def _open(
    ref: ModelRef, adapter: str | Path | None, place: str
) -> tuple[PreTrainedTokenizerBase, TextSettings, Backend]:
    precision = resolved_precision("auto", device := pick_device(place))
    backend: Backend | None
    if ref.is_package:
        tokenizer = load_tokenizer(ref)
        backend = native_backend(ref.package, Wanted()) or package_backend(ref)
        ends = end_tokens(tokenizer, generation_settings(ref.folder))
    else:
        network, tokenizer = load_with_adapter(ref, adapter, "auto" if device.type == "cpu" else precision, place)
        ends = end_tokens(tokenizer, getattr(network, "generation_config", None))
        backend = native_backend(network, Wanted(precision=precision))
        backend = backend or TransformersBackend(nn.Module.to(network, DTYPES[precision]))
    context = positions_in(known_config(ref.folder)) or backend.max_length
    return tokenizer, TextSettings(decoding_by(tokenizer), ends, min(backend.max_length, context)), backend


def written_rows(author: Author, backend: Backend, tokens: int | None, path: Path) -> list[Row]:
    """Return the first rows of `tokens`, or all; append those that the journal at `path` lacks."""
    known: dict[int, Row] = {row["number"]: row for row in journal.read_rows(path)}
    open_texts: dict[int, Continuation] = {}
    batch = Batch(backend)
    total = tokens or len(author.numbers)
    with meter("writing", total, "tokens" if tokens else "answers") as progress:
        progress.skip(min(_num_tokens(author, known.values()) if tokens else len(known), total))
        while (rows := _first(author, known, tokens)) is None:
            for text in batch.run(_beginnings(author, known, open_texts, tokens)):
                if (following := author.following(text)) is not None:
                    open_texts[text.number] = following
                    batch.add(following)
                    continue
                del open_texts[text.number]
                row = known[text.number] = author.row(text)
                journal.append_row(path, row)
                progress.advance(_num_tokens(author, [row]) if tokens else 1, "tokens/s", len(text.tokens))
                latest = list(known.values())[-MOST_EMPTY:]
                if len(latest) == MOST_EMPTY and not any(row["tokens"] for row in latest):
                    raise InputError("a model must write text, this one ends every text at once; name a text file")
    return rows


def _num_tokens(author: Author, rows: Iterable[Row]) -> int:
    return sum(int(row["tokens"]) for row in rows if author.is_kept(row))


def _beginnings(
    author: Author, known: Mapping[int, Row], open_texts: dict[int, Continuation], tokens: int | None
) -> Iterator[Continuation]:
    for number in author.numbers:
        total = _num_tokens(author, known.values()) + sum(len(text.tokens) for text in open_texts.values())
        if tokens is not None and total >= tokens and (open_texts or _first(author, known, tokens) is not None):
            return
        if number not in known:
            open_texts[number] = author.begin(number)
            yield open_texts[number]


def _first(author: Author, known: Mapping[int, Row], tokens: int | None) -> list[Row] | None:
    rows: list[Row] = []
    for number in author.numbers:
        if tokens is not None and _num_tokens(author, rows) >= tokens:
            break
        if number not in known:
            return None
        rows.append(known[number])
    return rows


def text_source(
    source: str, model: AnyModel, tokens: int | None, seed: int, columns: Mapping[str, str] = OWN_NAMES, **config: Any
) -> tuple[str, Mapping[str, str]]:
    """Return a source and its columns; for `self` or `self:FILE` a file that the model writes once.

    The file has at least `tokens` tokens, unless the answers to all rows of FILE, which has the
    `columns`, have fewer. Other keywords are those of `write`.
    """
    if not is_written(source):
        return source, columns
    prompts = source.removeprefix(ANSWERED) if source != WRITTEN else None
    given = {**config, **({"columns": columns} if prompts else {}), "tokens": tokens, "seed": seed}
    settings = build(WriteConfig, "write", given).for_prompts(prompts)
    ref = resolve_with(model, None, "auto")
    asked = _asked(ref, None, settings, prompts and read_rows(prompts, settings.columns))
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    output = cache_folder() / CACHED_TEXTS / name
    if (output / WRITTEN_TEXT).is_file():
        logger.info("using the text that %s wrote before, in %s", ref.name, output)
        return str(output / TEXT), OWN_NAMES
    output.parent.mkdir(parents=True, exist_ok=True)
    return str(write(ref, output, prompts, **given)), OWN_NAMES


def answers_source(
    source: str, model: AnyModel, seed: int, columns: Mapping[str, str] = OWN_NAMES, **config: Any
) -> tuple[str, Mapping[str, str]]:
    """Return a source and its columns; for `self:FILE` a file of the model's answers to all rows.

    Kept are right answers if every row has an `answer`, else those that ended.
    """
    if not source.startswith(ANSWERED):
        return source, columns
    rows = read_rows(source.removeprefix(ANSWERED), columns)
    keep = "right" if all(row.get("answer") is not None for row in rows) else "ended"
    return text_source(source, model, None, seed, columns, keep=keep, **config)
