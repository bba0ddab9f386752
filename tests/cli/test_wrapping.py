"""Text in pieces, broken between words: the lines are those of the whole text, however it was cut."""

import textwrap

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shears.cli.wrapping import Wrapper

WORDS = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20)


def _wrapped(pieces: list[str], width: int) -> str:
    wrapper = Wrapper(width)
    return "".join([*map(wrapper.add, pieces), wrapper.rest()])


@given(WORDS, st.integers(10, 30), st.integers(1, 7))
def test_lines_are_those_of_the_whole_text_however_it_was_cut(words: list[str], width: int, size: int) -> None:
    text = " ".join(words)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    lines = [line.rstrip(" ") for line in _wrapped(pieces, width).split("\n")]
    assert lines == textwrap.wrap(text, width)


@given(st.text("ab \n\tあ", max_size=60), st.integers(2, 9))
def test_no_line_is_too_long_and_nothing_is_lost(text: str, width: int) -> None:
    shown = _wrapped(list(text), width)
    assert all(cell_len(line) <= max(width, 2) for line in shown.split("\n"))
    assert [c for c in shown if not c.isspace()] == [c for c in text if not c.isspace()]


def test_a_word_is_shown_once_it_is_whole() -> None:
    wrapper = Wrapper(20)
    assert [wrapper.add(piece) for piece in ("Hel", "lo", " wor", "ld.", "\n")] == ["", "", "Hello ", "", "world.\n"]
    assert _wrapped(["    x = 1\n"], 20) == "    x = 1\n"
