"""Text that comes in pieces, broken between words where a line of the terminal ends."""

from rich.cells import cell_len

TAB = "    "


class Wrapper:
    """Takes pieces, returns what can be shown: a word as soon as it is whole. Widths are in cells of a terminal."""

    def __init__(self, width: int) -> None:
        self._width, self._column, self._word = width, 0, ""

    def add(self, piece: str) -> str:
        """Return what to show now."""
        return "".join(self._character(character) for character in piece.replace("\t", TAB))

    def rest(self) -> str:
        """Return the last word."""
        return self._flush()

    def _character(self, character: str) -> str:
        if character == "\n":
            text, self._column = self._flush() + character, 0
            return text
        if character == " ":
            return self._flush() + self._put(character)
        if cell_len(character) > 1:  # scripts without spaces may be broken anywhere
            return self._flush() + self._put(character)
        self._word += character
        return self._flush() if len(self._word) >= self._width else ""

    def _flush(self) -> str:
        word, self._word = self._word, ""
        return self._put(word)

    def _put(self, text: str) -> str:
        size = cell_len(text)
        if self._column + size <= self._width:
            self._column += size
            return text
        self._column = 0 if text == " " else size
        return "\n" if text == " " else f"\n{text}"
