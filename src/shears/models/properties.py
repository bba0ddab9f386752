"""Properties of a loaded model: its own module without wrappers, its parameters' names, its number of positions."""

import inspect
from typing import Any

from peft import PeftModel
from torch import nn

from shears.errors import InputError

CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # keys of configurations


def num_positions(model: nn.Module) -> int | None:
    """Return the number of positions in a model's configuration; None where it has none."""
    return positions_in(getattr(own_model(model), "config", None))


def positions_in(config: Any) -> int | None:
    """Return the number of positions in a configuration; None where it has none."""
    config = config.get_text_config() if config is not None else None
    lengths = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def check_sequence_length(model: nn.Module, length: int) -> None:
    """Raise InputError for sequences of more tokens than the model has positions."""
    context = num_positions(model)
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def within_context(model: nn.Module, tokens: int) -> int:
    """Return a number of tokens, reduced to the model's number of positions where that is smaller."""
    return min(tokens, num_positions(model) or tokens)


def own_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers of PEFT, distributed training and compilation."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Return the parameter names of the forward of `own_model`."""
    return frozenset(inspect.signature(own_model(model).forward).parameters)
