"""From tokens to text while tokens come: whole characters only, and no part of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character with missing bytes
CONTEXT = 8  # last tokens of the prompt that are decoded too: some tokenizers drop the space before a first word
LONGEST_CHARACTER = 8  # tokens; if more are still no character, the first of them never become one
UNFINISHED_TOKENS = 3  # most tokens of a character that lacks a byte: UTF-8 has at most four bytes


class Detokenizer:
    """Turns tokens into text one by one; the pieces joined are the text of all tokens after the prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT:])  # starts at a token that begins a piece
        self._shown = len(self._tokens)  # tokens whose text was returned, or belongs to the prompt

    def add(self, token: int) -> str:
        """Return the text that this token adds; an empty string while a character is incomplete."""
        self._tokens.append(token)
        num_open = len(self._tokens) - self._shown
        text = self._new_text()
        if not text.endswith(UNFINISHED):
            return self._show(text)
        return self._show_broken(text) if num_open >= LONGEST_CHARACTER else ""

    def rest(self) -> str:
        """Return the remaining text if the tokens end inside a character."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]

    def _show_broken(self, text: str) -> str:
        """Return the text before the last tokens, which may still become a whole character."""
        before = len(self._decode(self._tokens[: self._shown]))
        for end in range(len(self._tokens) - UNFINISHED_TOKENS, len(self._tokens)):
            piece = self._decode(self._tokens[:end])[before:]
            if piece and text.startswith(piece):  # else this would cut a whole character
                self._tokens = self._tokens[self._shown :]
                self._shown = end - self._shown
                return piece
        return self._show(text)

    def _show(self, text: str) -> str:
        if text:  # else keep the earlier tokens: a window of special tokens alone would hide a space
            self._tokens = self._tokens[self._shown :]
            self._shown = len(self._tokens)
        return text


class StopFilter:
    """Passes text on up to the first stop string; holds back text that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Return the text that is certain to come before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        self._held = ""
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def rest(self) -> str:
        """Return the text that was held back and has not become a stop string."""
        held = self._held
        self._held = ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that is a beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
