"""Guess the next tokens of an answer from its own text: those that followed its last tokens before.

A backend checks a guess in one step, which takes less time than a step for each token (prompt
lookup decoding). A wrong guess costs that step's extra time, so guesses grow where they hold and
pause where they fail, for each length of the n-gram apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

LONGEST = 7  # tokens of a guess: with the token before them one step of 8
SHORTEST = {3: 3, 2: 3, 1: 2}  # tokens of a guess after an n-gram; the longest n-gram goes first
LONGEST_WAIT = 8  # tokens


@dataclass
class _Trust:
    """What is known of n-grams of one length: where they ended last, and how far they are trusted."""

    length: int
    shortest: int
    after: dict[tuple[int, ...], int] = field(default_factory=dict)  # the position behind the last occurrence
    wait: int = 1  # tokens from a wrong guess to the next one
    resume: int = 0  # the length of the text from which on guesses are made


class Lookup:
    """The guesses for one answer; they depend on its tokens alone."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._trust = {size: _Trust(length, length) for size, length in SHORTEST.items()}
        self._used = max(SHORTEST)  # the n-gram's length of the last guess
        self._num_prompt = len(prompt)
        self._read(prompt)

    def guess(self, answer: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow the answer so far."""
        self._read(answer[len(self._tokens) - self._num_prompt :])
        for size, trust in self._trust.items():
            start = trust.after.get(tuple(self._tokens[-size:]))
            if start is not None and len(self._tokens) >= trust.resume:
                self._used = size
                length = min(trust.length, most)
                return list(islice(cycle(self._tokens[start : start + length]), length))  # goes round at the end
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Take note of how many tokens of the last guess were right."""
        trust = self._trust[self._used]
        if right:
            trust.length = min(max(trust.shortest, right + (right == guessed)), LONGEST)
            trust.wait = 1
        else:
            trust.length = trust.shortest
            trust.wait = min(2 * trust.wait, LONGEST_WAIT)
            trust.resume = len(self._tokens) + trust.wait

    def _read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for size, trust in self._trust.items():
                if len(self._tokens) >= size:
                    trust.after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)
