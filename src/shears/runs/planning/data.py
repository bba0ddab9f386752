"""How much data a stage will see, as far as it can be known here: files are counted, nothing is downloaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from shears.config import Recipe, SparsifyConfig, TrainConfig
from shears.data.calibration import token_row_lengths
from shears.data.examples import load_examples, tokenize_all
from shears.data.rows import ARITHMETIC, is_saved, read_rows
from shears.evaluation.contamination import check_apart
from shears.records.paths import expanded

MOST = 500  # examples that are tokenised to know how long one is


class Amount(NamedTuple):
    """The number of examples, None where it is not known yet, and what is to be said then."""

    examples: int | None
    words: str


def is_here(source: str) -> bool:
    """Tell whether a source can be read without a download."""
    return source.partition(":")[0] == ARITHMETIC or expanded(source).is_file() or is_saved(source)


def shown(source: str) -> str:
    """Return a source, and whether it is still to come."""
    return source if is_here(source) else f"{source} (not here yet)"


def refuse_shared_rows(recipe: Recipe) -> None:
    """Raise InputError where the search would see the test rows, as `run` does; of data that are here."""
    search, test = recipe.search, recipe.evaluate
    if search and test and is_here(search.data) and is_here(test.data):
        with _quietly():
            check_apart(search.data, test.data, search.limit, test.limit)


def text_amount(source: str, sequence_length: int, limit: int | None = None) -> str:
    """Return in words how much of a text, or of rows as text, a perplexity is measured on."""
    first = f"the first {limit:,} windows" if limit else "windows"
    return f"{first} of {sequence_length:,} tokens of {shown(source)}"


def calibration_amount(settings: SparsifyConfig) -> tuple[int, str]:
    """Return how many tokens are calibrated on, and that in words; InputError where rows here cannot be read."""
    text, count, length = settings.calibration, settings.num_samples, settings.sequence_length
    if is_here(text):
        with _quietly():
            lengths = token_row_lengths(text)
        if lengths is not None:
            return sum(lengths), f"all {len(lengths):,} rows of {text}, {sum(lengths):,} tokens"
    return count * length, f"{count} x {length} = {count * length:,} tokens of {shown(text)}"


def amount(source: str, limit: int | None = None) -> Amount:
    """Return how many examples a source holds; InputError where its rows cannot be read."""
    if not is_here(source):
        asked = f"up to {limit:,}" if limit else "an unknown number of"
        return Amount(limit, f"{asked} examples ({source} is not here yet)")
    with _quietly():
        count = len(read_rows(source)[:limit])
    return Amount(count, f"{count:,} examples of {source}")


class Length(NamedTuple):
    """The mean number of tokens of an example that is trained on, and the share of examples that are."""

    tokens: float
    kept: float


def example_length(settings: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Length | None:
    """Return how long a training example that is here is, measured on the first of them."""
    if amount(settings.data).examples is None:
        return None
    with _quietly():
        examples = load_examples(settings.data, settings.template, tokenizer, MOST)
        rows = tokenize_all(examples, tokenizer, settings.max_length, settings.train_on)
    return Length(sum(len(row.input_ids) for row in rows) / len(rows), len(rows) / len(examples))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what reading logs out of a plan."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
