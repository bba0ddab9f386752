"""How much data a stage will see, as far as it can be known here: files are counted, nothing is downloaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from shears.data.examples import load_examples, tokenize_all
from shears.data.rows import ARITHMETIC, read_rows
from shears.paths import expanded
from shears.recipe import TrainConfig

MOST = 500  # examples that are tokenised to know how long one is


class Amount(NamedTuple):
    """The number of examples, None where it is not known yet, and what is to be said then."""

    examples: int | None
    words: str


def amount(source: str, limit: int | None = None) -> Amount:
    """Return how many examples a source holds; InputError where its rows cannot be read."""
    if source.partition(":")[0] != ARITHMETIC and not expanded(source).is_file():
        asked = f"up to {limit:,}" if limit else "an unknown number of"
        return Amount(limit, f"{asked} examples ({source} is not here yet)")
    with _quietly():
        count = len(read_rows(source)[:limit])
    return Amount(count, f"{count:,} examples of {source}")


def example_tokens(settings: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Return the mean number of tokens of a training example that is here, measured on the first of them."""
    if amount(settings.data).examples is None:
        return None
    with _quietly():
        examples = load_examples(settings.data, settings.template, tokenizer, MOST)
        rows = tokenize_all(examples, tokenizer, settings.max_length, settings.train_on)
    return sum(len(row.input_ids) for row in rows) / len(rows)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what reading logs out of a plan."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
