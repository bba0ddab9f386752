"""From tokens to text as it comes: whole characters only, and never a part of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character whose bytes are not all there
CONTEXT = 8  # tokens of the prompt that are decoded along: some tokenizers drop the space in front of a first word
LONGEST_CHARACTER = 8  # tokens; of more that are still no character, the first never become one
UNFINISHED_TOKENS = 3  # at the most, of a character that lacks a byte: the longest of UTF-8 has four


class Detokenizer:
    """Turns tokens into text one by one; the pieces joined are the text of all tokens behind the prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT:])  # from some token that begins a piece
        self._shown = len(self._tokens)  # tokens whose text has been returned, or is the prompt's

    def add(self, token: int) -> str:
        """Return what this token adds to the text; nothing while a character is still open."""
        self._tokens.append(token)
        open_tokens = len(self._tokens) - self._shown
        text = self._new_text()
        if not text.endswith(UNFINISHED):
            return self._show(text)
        return self._show_broken(text) if open_tokens >= LONGEST_CHARACTER else ""

    def rest(self) -> str:
        """Return what is left of a text that ends inside a character."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]

    def _show_broken(self, text: str) -> str:
        """Return the text before the last tokens, of which the character may still become whole."""
        before = len(self._decode(self._tokens[: self._shown]))
        for end in range(len(self._tokens) - UNFINISHED_TOKENS, len(self._tokens)):
            piece = self._decode(self._tokens[:end])[before:]
            if piece and text.startswith(piece):  # else this would cut a whole character
                self._tokens, self._shown = self._tokens[self._shown :], end - self._shown
                return piece
        return self._show(text)

    def _show(self, text: str) -> str:
        if text:  # else keep the tokens before: a window of special tokens alone would hide a space
            self._tokens = self._tokens[self._shown :]
            self._shown = len(self._tokens)
        return text


class StopFilter:
    """Lets text through up to the first stop string; holds back what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Return the text that is certain to stand before any stop string."""
        if self.stopped:
            return ""
        text, self._held = self._held + piece, ""
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """Return what was held back and has not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that a stop string begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
