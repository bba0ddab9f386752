"""A model's own texts and chats, or answers to prompts, each a function of its number.

A plain text is sampled behind a random first word (LLM-QAT, arXiv 2305.17888, section 3.1), a chat
behind the chat template's opened user turn. Answer number `sample * num_rows + row` is to a row of
the source. Apart from rounding, text number n depends on model, settings, seed and n alone.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SamplingConfig, WriteConfig
from shears.data.forms import TrainedForm, turns_in
from shears.data.rows import Row
from shears.data.rules import rule_of
from shears.data.templates import DEFAULT_TEMPLATE, chat_turns, render_prompt
from shears.data.tokens import encode, encode_rendered, prompt_ids, render_turns, turns_of
from shears.errors import InputError
from shears.runtime.continuation import Continuation, TextSettings

MARK = "\u241fwords\u241f"  # stands for a turn's words where the template is cut apart
QUESTIONS = ("prompt", "instruction", "question")  # columns that ask, the first one that a row has


class Author:
    """Begins texts by their numbers, and turns finished ones into rows."""

    numbers: Sequence[int] = range(sys.maxsize)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_settings: TextSettings, settings: WriteConfig) -> None:
        self._tokenizer = tokenizer
        self._text_settings = text_settings
        self._settings = settings

    def begin(self, number: int) -> Continuation:
        """Return text number `number`, empty so far."""
        raise NotImplementedError

    def following(self, text: Continuation) -> Continuation | None:
        """Return the empty text that a finished one goes on with; None if it is whole."""

    def row(self, text: Continuation) -> Row:
        """Return a finished text as a row with its `number` and `tokens`, 0 if it is empty."""
        raise NotImplementedError

    def is_kept(self, row: Row) -> bool:
        return bool(row["tokens"])

    def _text(self, number: int, name: str, prompt: Sequence[int]) -> Continuation:
        seed = random.Random(name.format(self._settings.seed, number)).getrandbits(63)
        given = {"max_new_tokens": self._settings.max_new_tokens, "temperature": self._settings.temperature or 0.0}
        return Continuation(prompt, SamplingConfig(**given, seed=seed), self._text_settings, number=number)


class TextAuthor(Author):
    """Begins plain texts and, where the tokenizer has a chat template, whole chats."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_settings: TextSettings, settings: WriteConfig) -> None:
        # a turn ends with a special token that need not end a text
        ends = frozenset(tokenizer.all_special_ids) | text_settings.end_tokens
        super().__init__(tokenizer, replace(text_settings, end_tokens=ends), settings)
        self._users: dict[int, str] = {}  # the user's turns of chats whose answers are written
        self._opening: str | None = None  # what the template writes before a user's turn
        if tokenizer.chat_template is not None:
            opening, mark, _ = render_turns([{"role": "user", "content": MARK}], tokenizer).partition(MARK)
            self._opening = opening if mark else None
        if not (words := first_words(tokenizer)):
            raise InputError("a model that writes text must have words as tokens, this one has none; name a text file")
        self._words = words

    def begin(self, number: int) -> Continuation:
        if self._opening is not None and self._is_chat(number):
            [opening] = encode_rendered([self._opening], self._tokenizer)
            return self._text(number, "self text {} {} user", opening)
        [start] = prompt_ids([""], self._tokenizer)
        word = random.Random(f"self text {self._settings.seed} {number} word").choice(self._words)
        return self._text(number, "self text {} {} text", [*start, word])

    def following(self, text: Continuation) -> Continuation | None:
        words = self._words_of(text)
        if not self._is_chat(text.number) or text.number in self._users or not words:
            return None
        rendered = render_turns([{"role": "user", "content": words}], self._tokenizer, answering=True)
        [prompt] = encode_rendered([rendered], self._tokenizer)
        if len(prompt) >= self._text_settings.max_length:
            return None
        self._users[text.number] = words
        return self._text(text.number, "self text {} {} answer", prompt)

    def row(self, text: Continuation) -> Row:
        words = self._words_of(text)
        user = self._users.pop(text.number, None)
        content: Row = {}
        parts: list[str] = []
        if user is not None and words:
            parts = [user, words]
            content = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": words}]}
        elif words and not self._is_chat(text.number):
            whole = self._tokenizer.decode([text.prompt[-1], *text.tokens], skip_special_tokens=True)
            parts = [str(whole).strip()]
            content = {"text": parts[0]}
        tokens = sum(map(len, encode(parts, self._tokenizer))) if parts else 0
        return {"number": text.number, "tokens": tokens, **content}

    def _is_chat(self, number: int) -> bool:
        return self._opening is not None and number % 2 == 1

    def _words_of(self, text: Continuation) -> str:
        return str(self._tokenizer.decode(text.tokens, skip_special_tokens=True)).strip()


def first_words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that begin a text: all that are letters alone, ordered by id."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = sorted(token for token in tokenizer.get_vocab().values() if token not in special)
    words = tokenizer.batch_decode([[token] for token in ids])
    return [token for token, word in zip(ids, words, strict=True) if word.strip().isalpha() and "\ufffd" not in word]


class AnswerAuthor(Author):
    """Begins answers to the rows of a source.

    Rows that are no chats are asked as plain text if those of the model's training were none or the
    tokenizer has no chat template, else as chats.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_settings: TextSettings,
        settings: WriteConfig,
        rows: Sequence[Row],
        form: TrainedForm | None,
    ) -> None:
        super().__init__(tokenizer, text_settings, settings)
        self._rows = rows
        self._form = form
        self._ids = [self._prompt(row) for row in rows]
        longest, number = max((len(ids), number) for number, ids in enumerate(self._ids, start=1))
        if longest >= text_settings.max_length:
            rule = f"a prompt must be shorter than the model's context of {text_settings.max_length} tokens"
            raise InputError(f"{rule}, got {longest} in row {number}; shorten it or leave it out")
        order = list(range(len(rows)))
        if settings.tokens is not None:
            random.Random(f"prompts {settings.seed}").shuffle(order)
        self.numbers = [sample * len(rows) + row for sample in range(settings.samples) for row in order]

    def begin(self, number: int) -> Continuation:
        return self._text(number, "answer {} {}", self._ids[number % len(self._rows)])

    def row(self, text: Continuation) -> Row:
        """Return a finished answer; `row` and `sample` count from 1."""
        sample, index = divmod(text.number, len(self._rows))
        source = self._rows[index]
        words = text.text.strip()
        if self._is_chat(source):
            content: Row = {"messages": [*asked_turns(source), {"role": "assistant", "content": words}]}
        else:
            content = {"prompt": plain_prompt(source, self._form), "completion": text.text}
        right = None
        if self._settings.keep == "right" or source.get("answer") is not None:
            with suppress(InputError):  # an answer that no rule reads, which none needs
                right = text.finish == "stop" and rule_of(source).is_right(words)
        return {
            "number": text.number,
            "row": index + 1,
            "sample": sample + 1,
            "tokens": len(text.prompt) + len(text.tokens) if words else 0,
            "cut": text.finish == "length",
            "right": right,
            **content,
            **{key: source[key] for key in ("question", "answer") if source.get(key) is not None},
        }

    def is_kept(self, row: Row) -> bool:
        keep = self._settings.keep
        has_ended = not row["cut"] and (keep == "ended" or row["right"] is True)
        return bool(row["tokens"]) and (keep == "all" or has_ended)

    def _is_chat(self, row: Row) -> bool:
        chats = self._form is None or self._form.rows == "chat"
        return self._tokenizer.chat_template is not None and (chats or bool(row.get("messages")))

    def _prompt(self, row: Row) -> list[int]:
        if not self._is_chat(row):
            return prompt_ids([plain_prompt(row, self._form)], self._tokenizer)[0]
        turns = asked_turns(row) if self._form is None else turns_in(self._form, asked_turns(row))
        return encode_rendered([render_turns(turns, self._tokenizer, answering=True)], self._tokenizer)[0]


def asked_turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the turns up to the last one of a user: a conversation's, or those that ask a row."""
    if messages := row.get("messages"):
        turns = turns_of(messages)
        while turns and turns[-1]["role"] != "user":
            turns.pop()
        if not turns:
            raise InputError("a prompt must have a user turn, got none; leave that row out")
        return turns
    column, text, given = _asked_text(row)
    if column == "prompt":
        return [{"role": "user", "content": text.strip()}]
    return chat_turns({**row, "instruction": text, "input": given})


def plain_prompt(row: Mapping[str, Any], form: TrainedForm | None) -> str:
    column, text, given = _asked_text(row)
    if column == "prompt":
        return text
    return render_prompt(DEFAULT_TEMPLATE if form is None or form.rows == "chat" else form.template, text, given)


def _asked_text(row: Mapping[str, Any]) -> tuple[str, str, str]:
    column = next((name for name in QUESTIONS if isinstance(row.get(name), str) and row[name].strip()), None)
    if column is None:
        got = f"got {', '.join(map(str, row))}; name yours, such as --columns prompt=sentence"
        raise InputError(f"a prompt must be text in one of the columns {', '.join(QUESTIONS)} or messages, {got}")
    given = row.get("input") if column == "instruction" else None
    return column, row[column], str(given or "").strip()
