"""Text that a model writes itself, kept as an artifact: rows of `text` and of `messages`, and a record.

A plain text is sampled behind a random first word (as in LLM-QAT, arXiv 2305.17888, section 3.1), a chat behind the
chat template's opened user turn. Text number n is a function of the model, the settings, the seed and n alone, apart
from the backend's rounding: a longer text begins with the shorter ones, and is made from them.
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.config import WriteConfig
from shears.config.resolve import build
from shears.data.chat import render_turns
from shears.data.examples import encode, prompt_ids
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import end_tokens, load_model, load_tokenizer
from shears.models.losses import num_positions
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.progress import Meter, meter
from shears.records.artifacts import SELF_TEXT, as_data, write_json
from shears.records.folders import working_folder
from shears.records.paths import expanded, file_fingerprint
from shears.records.version import __version__
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.batch import Batch
from shears.runtime.generation.sampling import Sampler, TokenSampling
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.loading import native_backend_of
from shears.runtime.native.architectures import NotCoveredError

logger = logging.getLogger(__name__)

FOLDER = "self_text"  # in the cache of converted models
TEXT = "text.jsonl"
JOURNAL = "written.jsonl"  # in the working folder: texts in the order in which they ended
DECIDING = ("chats", "max_new_tokens", "temperature", "seed")  # fields that decide each text; tokens: how many
MOST_EMPTY = 64  # texts in a row; a model that ends each of them at once would be asked for ever
MARK = "\u241fwords\u241f"  # stands for a turn's words where the template is cut apart
Row = dict[str, Any]


def self_text(model: AnyModel, output: str | Path, **config: Any) -> Path:
    """Let a model write text into the folder `output`; return the file of rows in it.

    The keywords are the fields of `WriteConfig`. An interrupted call continues; texts in folders beside `output` that
    the same model wrote with the same settings are taken over. InputError for a model that cannot be used, or that
    ends its texts at once.
    """
    settings = build(WriteConfig, "write", config)
    ref = resolve(model)
    ref.refuse_package("let write")
    output = expanded(output)
    asked = {"base_fingerprint": ref.fingerprint, **{name: as_data(settings)[name] for name in (*DECIDING, "tokens")}}
    with working_folder(output, asked, resume=True) as work:
        _take_over(work, output.parent, asked)
        rows = _written(ref, settings, work / JOURNAL)
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
        write_json(work / SELF_TEXT, record)
        (work / JOURNAL).unlink()
    return output / TEXT


def own_text(model: AnyModel, tokens: int, seed: int, **config: Any) -> Path:
    """Return a file of at least so many tokens that the model writes itself, from shears' cache if it is there already.

    Other keywords are those of `self_text`. Its folder is named by all that decides the text, so that a changed setting
    or model gives another one.
    """
    settings = build(WriteConfig, "write", {**config, "tokens": tokens, "seed": seed})
    ref = resolve(model)
    deciding = {"base": ref.fingerprint, **{name: as_data(settings)[name] for name in DECIDING}}
    name = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
    output = cache_folder() / FOLDER / name / f"{settings.tokens}-tokens"
    if (output / SELF_TEXT).is_file():
        logger.info("taking the text that %s wrote before: %s", ref.name, output)
        return output / TEXT
    output.parent.mkdir(parents=True, exist_ok=True)
    return self_text(ref, output, **as_data(settings))


def _take_over(work: Path, siblings: Path, asked: dict[str, Any]) -> None:
    """Begin the journal with the most texts that a finished folder beside has of the same model and settings."""
    journal = work / JOURNAL
    if journal.is_file():
        return
    known: list[bytes] = []
    for record in sorted(siblings.glob(f"*/{SELF_TEXT}")):
        before = json.loads(record.read_text(encoding="utf-8"))
        if all(before.get(key) == value for key, value in asked.items() if key != "tokens"):
            known = max(known, (record.parent / TEXT).read_bytes().splitlines(keepends=True), key=len)
    journal.write_bytes(b"".join(known))


@dataclass
class WrittenText:
    """A text, or a turn of a chat, that is sampled up to an end token or its longest length."""

    number: int
    prompt: tuple[int, ...]
    ends: frozenset[int]
    limit: int
    sampler: Sampler
    user: str | None = None
    """The user's turn that this one answers."""
    is_chat: bool = False
    tokens: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    error: Exception | None = None
    has_ended: bool = False

    @property
    def done(self) -> bool:
        """Whether the text is complete or has failed."""
        return self.has_ended or self.error is not None

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Append a token; an end token ends the text."""
        token = self.sampler.next(logits)
        self.tokens.append(token)
        self.has_ended = token in self.ends or len(self.tokens) >= self.limit


class Turns(NamedTuple):
    """What a chat template writes before and behind a user's turn."""

    opening: str
    closing: str


def turns_of_template(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Return what the template writes around a user's turn; None without a template, or for one that changes it."""
    if tokenizer.chat_template is None:
        return None
    opening, mark, closing = render_turns([{"role": "user", "content": MARK}], tokenizer).partition(MARK)
    return Turns(opening, closing) if mark else None


def first_words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that begin a text: all that are letters alone, once per word, in the order of their ids."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = sorted(token for token in tokenizer.get_vocab().values() if token not in special)
    words = tokenizer.batch_decode([[token] for token in ids])
    return [token for token, word in zip(ids, words, strict=True) if word.strip().isalpha() and "\ufffd" not in word]


class Author:
    """Makes the prompts of texts by number, and rows of what is sampled behind them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], longest: int, settings: WriteConfig
    ) -> None:
        """`longest` is the most tokens of a sequence; `ends` are the model's end tokens."""
        self.tokenizer = tokenizer
        self.longest = longest
        self.settings = settings
        self.turns = turns_of_template(tokenizer) if settings.chats else None
        self._special = frozenset(tokenizer.all_special_ids) | ends  # a turn ends with a token that need not end a text
        self._words = first_words(tokenizer)
        if not self._words:
            raise InputError("a model that writes text must have words as tokens, its tokenizer has none; give a text")

    def begin(self, number: int) -> WrittenText:
        """Return text number `number`, empty so far: a plain text, or the user's turn of a chat."""
        if self._is_chat(number):
            assert self.turns is not None
            return self._text(number, "user", encode([self.turns.opening], self.tokenizer)[0], is_chat=True)
        [start] = prompt_ids([""], self.tokenizer)
        word = random.Random(f"self text {self.settings.seed} {number} word").choice(self._words)
        return self._text(number, "text", [*start, word])

    def answer(self, user: WrittenText) -> WrittenText | None:
        """Return the turn that answers the user's turn, empty so far; None for an empty or too long user's turn."""
        words = self._words_of(user)
        rendered = render_turns([{"role": "user", "content": words}], self.tokenizer, answering=True)
        [prompt] = encode([rendered], self.tokenizer)
        if not words or len(prompt) >= self.longest:
            return None
        return self._text(user.number, "answer", prompt, user=words, is_chat=True)

    def row(self, text: WrittenText) -> Row:
        """Return a finished text as a row, with its number and its tokens; without text if it is empty."""
        words = self._words_of(text)
        if text.user is not None:
            tokens = sum(map(len, encode([text.user, words], self.tokenizer)))
            turns = [{"role": "user", "content": text.user}, {"role": "assistant", "content": words}]
            return {"number": text.number, "tokens": tokens if words else 0, **({"messages": turns} if words else {})}
        whole = str(self.tokenizer.decode([text.prompt[-1], *text.tokens], skip_special_tokens=True)).strip()
        tokens = len(encode([whole], self.tokenizer)[0])
        has_text = bool(words) and not text.is_chat
        return {"number": text.number, "tokens": tokens if has_text else 0, **({"text": whole} if has_text else {})}

    def _is_chat(self, number: int) -> bool:
        share = self.settings.chats
        return self.turns is not None and int((number + 1) * share) > int(number * share)

    def _text(
        self, number: int, turn: str, prompt: Sequence[int], user: str | None = None, *, is_chat: bool = False
    ) -> WrittenText:
        seed = random.Random(f"self text {self.settings.seed} {number} {turn}").getrandbits(63)
        sampling = TokenSampling(self.settings.temperature, top_k=0, top_p=1.0, repetition_penalty=1.0)
        sampler = Sampler(sampling, seed, prompt)
        limit = min(self.settings.max_new_tokens, self.longest - len(prompt))
        return WrittenText(number, tuple(prompt), self._special, limit, sampler, user=user, is_chat=is_chat)

    def _words_of(self, text: WrittenText) -> str:
        """Return the sampled words; those of a turn end where the template's closing, if it is text, was written."""
        words = str(self.tokenizer.decode(text.tokens, skip_special_tokens=True)).strip()
        closing = self.turns.closing.strip() if self.turns is not None and text.is_chat else ""
        return words.partition(closing)[0].strip() if closing else words


def _written(model: ModelRef, settings: WriteConfig, journal: Path) -> list[Row]:
    """Return the first texts that hold the tokens asked for, in the order of their numbers; write what lacks."""
    known = {row["number"]: row for row in _read_journal(journal)}
    if _needed(known, settings.tokens) is None:
        author, backend = _open(model, settings)
        num_known = sum(row["tokens"] for row in known.values())
        with journal.open("a", encoding="utf-8") as file, meter("writing", settings.tokens, "tokens") as progress:
            progress.skip(min(num_known, settings.tokens))
            Writing(author, backend, known, lambda row: _keep(row, file, progress)).run()
    rows = _needed(known, settings.tokens)
    assert rows is not None
    return rows


def _open(model: ModelRef, settings: WriteConfig) -> tuple[Author, Backend]:
    tokenizer = load_tokenizer(model)
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    network = load_model(model, "auto" if device.type == "cpu" else precision, settings.device)
    backend = _backend(network, precision, settings)
    ends = end_tokens(tokenizer, network.generation_config)
    longest = min(backend.max_length, num_positions(network) or backend.max_length)
    return Author(tokenizer, ends, longest, settings), backend


def _backend(network: PreTrainedModel, precision: str, settings: WriteConfig) -> Backend:
    """Return the native decoder where it covers the model, else transformers."""
    try:
        if settings.backend == "transformers":
            raise NotCoveredError("backend transformers was asked for")
        return native_backend_of(network, precision, settings.batch_size)
    except NotCoveredError as error:
        if settings.backend == "native":
            raise InputError(f"backend native must cover the model: {error}; use --backend transformers") from None
        logger.info("transformers writes the texts: %s", error)
        return TransformersBackend(nn.Module.to(network, DTYPES[precision]), max_sequences=settings.batch_size)


def _read_journal(journal: Path) -> Iterator[Row]:
    """Yield the rows of a journal; a line that a kill cut off is removed."""
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with journal.open("rb+") as file:
            file.truncate(len(whole))
    yield from map(json.loads, whole.splitlines())


def _keep(row: Row, file: TextIO, progress: Meter) -> None:
    file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    file.flush()
    os.fsync(file.fileno())
    progress.advance(row["tokens"])


def _needed(known: dict[int, Row], tokens: int) -> list[Row] | None:
    """Return the first texts, without empty ones, that hold `tokens` together; None if any of them is unknown."""
    rows: list[Row] = []
    total = 0
    for number in count():
        if total >= tokens:
            return rows
        if number not in known:
            return None
        total += known[number]["tokens"]
        rows += [known[number]] if known[number]["tokens"] else []
    raise AssertionError


class Writing:
    """Texts being written until the known ones hold the tokens asked for; one begins as soon as another ends.

    Every finished text is added to `known` and given to `keep`.
    """

    def __init__(self, author: Author, backend: Backend, known: dict[int, Row], keep: Callable[[Row], None]) -> None:
        self._author = author
        self._batch = Batch[WrittenText](backend, shares_beginnings=True)
        self._most = backend.max_sequences
        self._known = known
        self._keep = keep
        self._numbers = (number for number in count() if number not in known)
        self._started: dict[int, WrittenText] = {}
        self._num_tokens = sum(row["tokens"] for row in known.values())

    def run(self) -> None:
        """Write all texts; InputError where the model writes nothing, or its logits are not numbers."""
        try:
            while self._begin():
                for text in [text for text in self._batch.advance() if text.done]:
                    if text.error is not None:
                        raise text.error
                    self._end(text)
        finally:
            self._batch.clear()

    def _begin(self) -> bool:
        """Begin texts while sequences are free and tokens lack; tell whether any text is unfinished."""
        wanted = self._author.settings.tokens
        while len(self._batch) < self._most:
            total = self._num_tokens + sum(len(text.tokens) for text in self._started.values())
            if total >= wanted and (self._started or _needed(self._known, wanted) is not None):
                break
            self._add(self._author.begin(next(self._numbers)))
        return bool(self._started)

    def _add(self, text: WrittenText) -> None:
        self._started[text.number] = text
        self._batch.add(text)

    def _end(self, text: WrittenText) -> None:
        """Let a finished user's turn be answered; keep any other text."""
        answer = self._author.answer(text) if text.is_chat and text.user is None else None
        if answer is not None:
            self._add(answer)
            return
        del self._started[text.number]
        row = self._known[text.number] = self._author.row(text)
        self._num_tokens += row["tokens"]
        self._keep(row)
        _refuse_silence(self._known)


def _refuse_silence(known: dict[int, Row]) -> None:
    latest = list(known.values())[-MOST_EMPTY:]
    if len(latest) == MOST_EMPTY and not any(row["tokens"] for row in latest):
        raise InputError("a model must write text, this one ends every text at once; give a text of your own")
