"""Answers of a model to the prompts of rows and chats; each is a function of its number.

Answer number `sample * num_rows + row` is to a row of the source, so that more samples, or a higher
limit, renumber nothing. Apart from rounding, it depends on model, settings, seed and prompt alone.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SamplingConfig, WriteConfig
from shears.data.chat import render_turns, turns_of
from shears.data.example import Row, messages_of
from shears.data.forms import turns_in
from shears.data.prompts import DEFAULT_TEMPLATE, TO_REASON, chat_turns, render_prompt
from shears.data.rows import read_rows
from shears.data.rules import AnswerRule, rule_of
from shears.data.tokens import encode_rendered, prompt_ids
from shears.errors import InputError
from shears.records.trained_form import TrainedForm
from shears.runtime.generation.answer import NO_DEMANDS, Answer, Demands, TextSettings
from shears.runtime.generation.grammar import Grammar
from shears.writing.writer import Plan, TextRow

Turn = dict[str, Any]
QUESTIONS = ("prompt", "instruction", "question")  # columns that ask, the first one that a row has


@dataclass(frozen=True)
class Prompts:
    """The rows of a source whose first `limit` are asked, and a hash of all of them."""

    source: str
    rows: Sequence[Row]
    limit: int
    keep: str = "all"
    """Which answers are kept."""
    form: TrainedForm | None = None
    """How the rows of the model's training asked; None: in the tokenizer's chat template, if it has one."""

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 of the rows, under the names that `columns` gave their values, and how they are asked."""
        return hashlib.sha256(json.dumps([TO_REASON, *self.rows], sort_keys=True, default=str).encode()).hexdigest()

    def plan(self, settings: WriteConfig) -> Plan:
        """Return the numbers of the answers in order: drawn ones if `tokens` are enough, else of all rows."""
        order = list(range(self.limit))
        if settings.tokens is not None:
            random.Random(f"prompts {settings.seed}").shuffle(order)
        numbers = [sample * len(self.rows) + row for sample in range(settings.samples) for row in order]
        return Plan(numbers, settings.tokens, lambda row: is_kept(row, self.keep))


def is_kept(row: TextRow, keep: str) -> bool:
    """Return whether an answer is kept: one that has text, has ended, is right; a cut one is never right."""
    return row["tokens"] > 0 and (keep == "all" or (not row["cut"] and (keep == "ended" or row["right"] is True)))


def read_prompts(source: str, settings: WriteConfig, form: TrainedForm | None = None) -> Prompts:
    """Return the prompts of a source; InputError, which names the row, for a row that asks nothing."""
    rows = read_rows(source, settings.columns)
    limit = min(settings.limit or len(rows), len(rows))
    prompts = Prompts(source, rows, limit, settings.keep, form)
    for index in range(prompts.limit):
        with_row(prompts, index, asked_turns)
        if settings.keep == "right":
            with_row(prompts, index, rule_of)
    return prompts


def rule_for(row: Row, keep: str) -> AnswerRule | None:
    """Return the rule that accepts answers to a row; None without an answer, where none is needed.

    A completion, or an assistant's turn, counts as the answer only if right answers are to be kept.
    """
    if keep != "right" and row.get("answer") is None:
        return None
    try:
        return rule_of(row)
    except InputError:  # `read_prompts` refused it if a rule is needed
        return None


def asked_turns(row: Mapping[str, Any]) -> list[Turn]:
    """Return the turns up to the last one of a user: a conversation's, or those that ask a row.

    A prompt is a turn as it is; an instruction or question is asked as `chat_turns` does. InputError
    for a row without a question, and for a conversation without a turn of a user.
    """
    if messages := messages_of(row):
        turns = turns_of(messages)
        users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
        if not users:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise InputError(f"a prompt must have a turn of a user, got turns of {roles}; leave it out")
        return turns[: users[-1] + 1]
    column, text, given = _asked_text(row)
    if column == "prompt":
        return [{"role": "user", "content": text.strip()}]
    return chat_turns({**row, "instruction": text, "input": given})


def _asked_text(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the column and text that a row without a conversation asks, and the input of an instruction."""
    column = next((name for name in QUESTIONS if row.get(name) is not None), None)
    if column is None:
        known = ", ".join((*QUESTIONS, "messages", "conversations"))
        got = ", ".join(map(str, row)) or "none"
        todo = "name yours with columns, such as prompt=sentence"
        raise InputError(f"a prompt must have one of the columns {known}, got {got}; {todo}")
    text, given = row[column], row.get("input") if column == "instruction" else None
    if not isinstance(text, str) or not text.strip() or not isinstance(given, str | None):
        raise InputError(f"a prompt must be text, got {text!r:.60} in {column}")
    return column, text, (given or "").strip()


def plain_prompt(row: Mapping[str, Any], form: TrainedForm | None) -> str:
    """Return a prompt as plain text, an instruction in a form's template; InputError for a conversation."""
    if messages_of(row):
        todo = "give prompt, or instruction"
        raise InputError(f"messages need a tokenizer with a chat template, got one without; {todo}")
    column, text, given = _asked_text(row)
    if column == "prompt":
        return text
    template = DEFAULT_TEMPLATE if form is None or form.rows == "chat" else form.template
    return render_prompt(template, text, given)


def with_row(prompts: Prompts, index: int, function: Any, *rest: Any) -> Any:
    """Return what a function makes of a row; its InputError names the row."""
    try:
        return function(prompts.rows[index], *rest)
    except InputError as error:
        raise InputError(f"row {index + 1} of {prompts.source}: {error}") from None


class PromptAnswer(Answer):
    """An answer to a prompt, with its number; it follows a grammar, if there is one."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        options: SamplingConfig,
        settings: TextSettings,
        grammar: Grammar | None = None,
    ) -> None:
        seed = random.Random(f"answer {options.seed} {number}").getrandbits(63)
        demands = NO_DEMANDS if grammar is None else Demands(grammar.begin())
        super().__init__(prompt, options, settings, seed, demands)
        self.number = number


def respondent_of(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    longest: int,
    options: SamplingConfig,
    grammar: Grammar | None = None,
) -> "Respondent":
    """Return who answers prompts, within a grammar if there is one; `longest` is the most tokens of a sequence.

    Rows that are no chats are asked as plain text if those of the model's training were none or the
    tokenizer has no chat template, else as chats. InputError, with the row, for a prompt that leaves
    no room for an answer.
    """

    def decode(tokens: Sequence[int]) -> str:
        text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    chats = prompts.form is None or prompts.form.rows == "chat"

    def is_chat(row: Row) -> bool:
        return tokenizer.chat_template is not None and (chats or bool(messages_of(row)))

    def checked(row: Row) -> list[int]:
        if is_chat(row):
            turns = asked_turns(row) if prompts.form is None else turns_in(prompts.form, asked_turns(row))
            [ids] = encode_rendered([render_turns(turns, tokenizer, answering=True)], tokenizer)
        else:
            [ids] = prompt_ids([plain_prompt(row, prompts.form)], tokenizer)
        if len(ids) >= longest:
            rule = f"a prompt must be shorter than the model's context of {longest} tokens"
            raise InputError(f"{rule}, got {len(ids)}; shorten it or leave it out")
        return ids

    ids = [with_row(prompts, index, checked) for index in range(prompts.limit)]
    return Respondent(prompts, ids, TextSettings(decode, ends, longest), options, is_chat, grammar)


@dataclass(frozen=True)
class Respondent:
    """Begins the answers to prompts by their numbers, and turns finished ones into rows."""

    prompts: Prompts
    ids: Sequence[Sequence[int]]
    """The tokens of every prompt that is asked."""
    settings: TextSettings
    options: SamplingConfig
    is_chat: Callable[[Row], bool]
    grammar: Grammar | None = None

    def begin(self, number: int) -> PromptAnswer:
        """Return answer number `number`, empty so far."""
        ids = self.ids[number % len(self.prompts.rows)]
        return PromptAnswer(number, ids, self.options, self.settings, self.grammar)

    def answer(self, text: PromptAnswer) -> None:
        """Return no further turn: an answer is whole."""

    def row(self, text: PromptAnswer) -> TextRow:
        """Return a finished answer as a row of `messages`, or of prompt and completion without a chat template.

        `row` and `sample` count from 1. The question and answer of the source are kept beside it.
        """
        generation = text.result()
        sample, index = divmod(text.number, len(self.prompts.rows))
        source = self.prompts.rows[index]
        words = generation.text.strip()
        rule = rule_for(source, self.prompts.keep)
        return {
            "number": text.number,
            "row": index + 1,
            "sample": sample + 1,
            "tokens": len(text.prompt) + len(text.tokens) if words else 0,
            "cut": generation.finish == "length",
            "right": None if rule is None else generation.finish == "stop" and rule.is_right(words),
            **self._content(source, words, generation.text),
            **{name: source[name] for name in ("question", "answer") if source.get(name) is not None},
        }

    def _content(self, source: Row, words: str, text: str) -> TextRow:
        if self.is_chat(source):
            return {"messages": [*asked_turns(source), {"role": "assistant", "content": words}]}
        return {"prompt": plain_prompt(source, self.prompts.form), "completion": text}
