"""Text streams in whole characters, without any part of a stop string."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from shears.runtime.continuation import Decode, Detokenizer, StopFilter
from tests.tiny import tiny_tokenizer

BYTES = tiny_tokenizer()
BROKEN = "\N{REPLACEMENT CHARACTER}"


def _decode(tokens: Sequence[int]) -> str:
    return str(BYTES.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _streamed(decode: Decode, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode, prompt)
    return [*(detokenizer.add(token) for token in tokens), detokenizer.rest()]


@given(st.text(), st.text())
def test_the_pieces_are_the_text(prompt: str, text: str) -> None:
    tokens = BYTES(text)["input_ids"]
    pieces = _streamed(_decode, BYTES(prompt)["input_ids"], tokens)
    assert "".join(pieces) == _decode(tokens)
    assert all(piece == "" or _decode(BYTES(piece)["input_ids"]) == piece for piece in pieces)


def test_a_text_that_ends_inside_a_character_says_so() -> None:
    assert _streamed(_decode, [], BYTES("aé")["input_ids"][:2])[-1] == BROKEN


def _metaspace() -> Tokenizer:
    """A tokenizer like that of Llama 2: a word includes the space before it; the first space of a text is dropped."""
    words = ["▁one", "▁two", "x", "<s>", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.mark.parametrize("prompt", [[0], [3, 0], [3], [0, 3]])
def test_spaces_in_front_of_words_are_kept(prompt: list[int]) -> None:
    tokenizer = _metaspace()
    tokens = [1, 2, 0, 3, 1, 4, 5, 0]
    whole = tokenizer.decode([*prompt, *tokens])[len(tokenizer.decode(prompt)) :]
    assert "".join(_streamed(tokenizer.decode, prompt, tokens)) == whole
    assert "é" in whole


def _first_stop(text: str, stops: list[str]) -> str:
    """The oracle: character by character, the text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)]
    return text


SMALL = st.text(alphabet="ab", min_size=1, max_size=4)


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=12), st.lists(SMALL, max_size=3))
def test_a_text_stops_at_the_same_place_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    filter_, shown = StopFilter(stops), ""
    whole = _first_stop("".join(pieces), stops)
    for piece in pieces:
        shown += filter_.add(piece)
        assert whole.startswith(shown)
    assert shown + filter_.rest() == whole
    assert filter_.stopped == any(stop in "".join(pieces) for stop in stops)
