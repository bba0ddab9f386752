"""A model's tokenizer, and the tokens that end its texts; no network is imported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.checkpoints import without_code
from shears.errors import reading
from shears.models.ref import ModelRef


def load_tokenizer(model: ModelRef) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; its padding token is the end of sequence if it has none."""
    with reading(model.folder):
        tokenizer = without_code.load_tokenizer(model.folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_tokenizer(model: ModelRef, folder: Path) -> None:
    """Write the model's tokenizer without the padding token of `load_tokenizer`.

    A trainer that finds the end of sequence as the padding token may mask it in the labels.
    """
    with reading(model.folder):
        tokenizer = without_code.load_tokenizer(model.folder)
    tokenizer.save_pretrained(folder)


def end_tokens(tokenizer: PreTrainedTokenizerBase, settings: Any) -> frozenset[int]:
    """Return every token that ends a text: the tokenizer's and the generation settings'.

    Chat models have several, and name some of them only in the settings.
    """
    of_model: Iterable[int] | int | None = getattr(settings, "eos_token_id", None)
    several = of_model if isinstance(of_model, Iterable) else [of_model]
    return frozenset(token for token in (tokenizer.eos_token_id, *several) if token is not None)
