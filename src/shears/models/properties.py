"""Properties of a loaded model: what it says of itself, and what a trial of a few tokens shows.

Trials decide what a model can do, not a list of architectures. Its mode and the random generators
stay as they are. T tokens, V words of the vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.errors import InputError

CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # keys of configurations
TRIAL_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
"""What a model's code raises if a trial asks for something that it cannot do."""
SHORT = 5  # this and the next: tokens of the rows that are padded together
LONG = 9
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit
CLOSE_ELSE = 5e-2  # for dtypes that round more


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
    refuse_longer(length, num_positions(model))


def refuse_longer(length: int, context: int | None) -> None:
    """Raise InputError for sequences of more tokens than a context, if it is known."""
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for."""
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def check_calibration(model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]]) -> None:
    """Raise InputError without batches, for unknown token ids, and for more tokens than positions."""
    if not batches:
        raise InputError("there must be at least one batch of calibration tokens, got none; give a calibration text")
    vocabulary = num_embeddings(model)
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    check_sequence_length(model, max(batch.shape[1] for batch in batches))


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


def num_words(model: nn.Module) -> int:
    """Return the number of tokens in a model's vocabulary."""
    return int(own_model(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def weights_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights; an integer dtype if any are quantized."""
    dtypes = [parameter.dtype for parameter in model.parameters()]
    return next((dtype for dtype in dtypes if not dtype.is_floating_point), dtypes[0])


def drawn(model: nn.Module, *lengths: int) -> list[list[int]]:
    """Return rows of random tokens, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    words = num_words(model)
    return [torch.randint(words, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether a row that is padded on the left has the logits that it has alone.

    Some recurrent models read padding like any other token. Tried in the arithmetic of the weights.
    """
    short, long = drawn(model, SHORT, LONG)
    device = next(model.parameters()).device

    def logits(pad_id: int, *rows: list[int]) -> Float[Tensor, "T V"]:
        gaps = [max(map(len, rows)) - len(row) for row in rows]
        mask = torch.tensor([[0] * gap + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)])
        batch = {
            "input_ids": torch.tensor([[pad_id] * gap + row for gap, row in zip(gaps, rows, strict=True)]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        }
        inputs = {name: each.to(device) for name, each in batch.items() if name in forward_parameters(model)}
        result: Tensor = model(**inputs, use_cache=False).logits[0, -SHORT:].float()
        return result

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            padded, otherwise = (logits(pad_id, short, long) for pad_id in (0, num_words(model) - 1))
            return is_apart(padded, otherwise, logits(0, short), weights_dtype(model))
    except TRIAL_ERRORS:
        return False
    finally:
        model.train(was_training)


def is_apart(
    beside: Float[Tensor, "T V"], neighbour: Float[Tensor, "T V"], alone: Float[Tensor, "T V"], dtype: torch.dtype
) -> bool:
    """Tell whether logits beside two neighbours are equal, and close to those of the example alone."""
    scale = alone.abs().max()
    independent = (beside - neighbour).abs().max() <= 1e-5 * scale
    return bool(independent and (beside - alone).abs().max() <= CLOSE.get(dtype, CLOSE_ELSE) * scale)
