"""What a model is asked to write: plain texts and whole chats, each a function of its number.

A plain text is sampled behind a random first word (LLM-QAT, arXiv 2305.17888, section 3.1), a chat
behind the chat template's opened user turn. Apart from rounding, text number n depends on model,
settings, seed and n alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from shears.config import WriteConfig
from shears.data.chat import render_turns
from shears.data.tokens import encode, encode_rendered, prompt_ids
from shears.errors import InputError
from shears.runtime.generation.sampling import Sampler, TokenSampling
from shears.writing.writer import TextRow

MARK = "\u241fwords\u241f"  # stands for a turn's words where the template is cut apart


@dataclass
class Draft:
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


class UserTurn(NamedTuple):
    """What a chat template writes before and behind a user's turn."""

    opening: str
    closing: str


def user_turn_of_template(tokenizer: PreTrainedTokenizerBase) -> UserTurn | None:
    """Return what the template writes around a user's turn; None if it alters the turn."""
    if tokenizer.chat_template is None:
        return None
    opening, mark, closing = render_turns([{"role": "user", "content": MARK}], tokenizer).partition(MARK)
    return UserTurn(opening, closing) if mark else None


def first_words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that begin a text: all that are letters alone, ordered by id."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = sorted(token for token in tokenizer.get_vocab().values() if token not in special)
    words = tokenizer.batch_decode([[token] for token in ids])
    return [token for token, word in zip(ids, words, strict=True) if word.strip().isalpha() and "\ufffd" not in word]


class TextAuthor:
    """Gives the prompt of every text by its number, and turns finished drafts into rows."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], longest: int, settings: WriteConfig
    ) -> None:
        """`longest` is the most tokens of a sequence; `ends` are the model's end tokens."""
        self.tokenizer = tokenizer
        self.longest = longest
        self.settings = settings
        self.turns = user_turn_of_template(tokenizer) if settings.chats else None
        self._special = frozenset(tokenizer.all_special_ids) | ends  # a turn ends with a token that need not end a text
        self._words = first_words(tokenizer)
        if not self._words:
            raise InputError("a model that writes text must have words as tokens, its tokenizer has none; give a text")

    def begin(self, number: int) -> Draft:
        """Return text number `number`, empty so far: a plain text, or the user's turn of a chat."""
        share = self.settings.chats
        if self.turns is not None and int((number + 1) * share) > int(number * share):
            [opening] = encode_rendered([self.turns.opening], self.tokenizer)
            return self._text(number, "user", opening, is_chat=True)
        [start] = prompt_ids([""], self.tokenizer)
        word = random.Random(f"self text {self.settings.seed} {number} word").choice(self._words)
        return self._text(number, "text", [*start, word])

    def answer(self, text: Draft) -> Draft | None:
        """Return the empty answer to a user's turn; None if that turn is empty or too long, and of another text."""
        return self._answer(text) if text.is_chat and text.user is None else None

    def _answer(self, user: Draft) -> Draft | None:
        words = self._words_of(user)
        rendered = render_turns([{"role": "user", "content": words}], self.tokenizer, answering=True)
        [prompt] = encode_rendered([rendered], self.tokenizer)
        if not words or len(prompt) >= self.longest:
            return None
        return self._text(user.number, "answer", prompt, user=words, is_chat=True)

    def row(self, text: Draft) -> TextRow:
        """Return a finished text as a row with number and tokens; without text if empty."""
        words = self._words_of(text)
        if text.user is not None:
            tokens = sum(map(len, encode([text.user, words], self.tokenizer)))
            turns = [{"role": "user", "content": text.user}, {"role": "assistant", "content": words}]
            return {"number": text.number, "tokens": tokens if words else 0, **({"messages": turns} if words else {})}
        whole = str(self.tokenizer.decode([text.prompt[-1], *text.tokens], skip_special_tokens=True)).strip()
        tokens = len(encode([whole], self.tokenizer)[0])
        has_text = bool(words) and not text.is_chat
        return {"number": text.number, "tokens": tokens if has_text else 0, **({"text": whole} if has_text else {})}

    def _text(
        self, number: int, turn: str, prompt: Sequence[int], user: str | None = None, *, is_chat: bool = False
    ) -> Draft:
        seed = random.Random(f"self text {self.settings.seed} {number} {turn}").getrandbits(63)
        sampling = TokenSampling(self.settings.temperature or 1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
        sampler = Sampler(sampling, seed, prompt)
        limit = min(self.settings.max_new_tokens, self.longest - len(prompt))
        return Draft(number, tuple(prompt), self._special, limit, sampler, user=user, is_chat=is_chat)

    def _words_of(self, text: Draft) -> str:
        """Return the sampled words; a turn ends where the template's closing was written."""
        words = str(self.tokenizer.decode(text.tokens, skip_special_tokens=True)).strip()
        closing = self.turns.closing.strip() if self.turns is not None and text.is_chat else ""
        return words.partition(closing)[0].strip() if closing else words
