"""A model with its tokenizer, and the tokens that the one may have and the other lack."""

from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.errors import InputError
from shears.models.load import load_model, load_tokenizer

FIX = "resize the model's embeddings, or take the tokenizer that it was trained with"


def load_both(
    name: str | Path, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer; InputError comes as soon as a forward has tokens without an embedding."""
    model, tokenizer = load_model(name, dtype, device), load_tokenizer(name)
    if max(tokenizer.get_vocab().values(), default=0) >= num_embeddings(model):
        model.get_input_embeddings().register_forward_pre_hook(_refuse)
    return model, tokenizer


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for."""
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def refuse_unknown(largest: int, embeddings: int) -> None:
    """Raise InputError where the largest token id of a text has no embedding."""
    if largest >= embeddings:
        raise InputError(f"token ids must be below {embeddings}, the model's embeddings, got {largest}; {FIX}")


def _refuse(embedding: nn.Module, inputs: tuple[Int[Tensor, "..."], ...], *_: Any) -> None:
    if inputs:
        refuse_unknown(int(inputs[0].max()), int(embedding.get_parameter("weight").shape[0]))
