"""Properties of a loaded model: what it says of itself, and whether it can be padded.

T tokens, V words of the vocabulary.
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
TRIED = 5  # tokens of a row, and of its padding
CLOSE = {torch.float32: 1e-3}  # of the largest logit; 5e-2 in dtypes that round more


def num_positions(model: nn.Module) -> int | None:
    """Return the number of positions in a model's configuration; None where it has none."""
    return positions_in(getattr(own_model(model), "config", None))


def positions_in(config: Any) -> int | None:
    config = config.get_text_config() if config is not None else None
    lengths = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def refuse_longer(length: int, context: int | None) -> None:
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def num_embeddings(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().get_parameter("weight").shape[0])


def check_calibration(model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]]) -> None:
    if not batches:
        raise InputError("there must be at least one batch of calibration tokens, got none; give a calibration text")
    vocabulary = num_embeddings(model)
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    refuse_longer(max(batch.shape[1] for batch in batches), num_positions(model))


def own_model(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers of PEFT, distributed training and compilation."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(own_model(model).forward).parameters)


def cache_bytes(model: nn.Module, item: int | None = None) -> int:
    """Return the bytes of a token's keys and values, 0 without attention; `item` bytes a number, or the embeddings'."""
    network: Any = own_model(model)
    config = network.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or config.hidden_size // max(num_heads, 1)
    kept = getattr(config, "num_key_value_heads", None) or num_heads
    item = item or network.get_input_embeddings().weight.element_size()
    return int(2 * config.num_hidden_layers * kept * size * item)


@torch.no_grad()
def ignores_padding(model: nn.Module) -> bool:
    """Tell whether a row that is padded on the left has the logits that it has alone, whatever fills it up."""
    weight = own_model(model).get_input_embeddings().weight  # type: ignore[operator]

    def logits(gap: int, pad_id: int = 0) -> Float[Tensor, "T V"]:
        mask = torch.tensor([[0] * gap + [1] * TRIED], device=weight.device)
        ids = torch.tensor([[pad_id] * gap + list(range(1, TRIED + 1))], device=weight.device)
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        inputs = {name: tensor for name, tensor in batch.items() if name in forward_parameters(model)}
        result: Tensor = model(**inputs, use_cache=False).logits[0, -TRIED:].float()
        return result

    try:
        with torch.autocast(weight.device.type, enabled=False):
            alone, padded, otherwise = logits(0), logits(TRIED), logits(TRIED, len(weight) - 1)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError):
        return False  # a model that does not take such a batch
    scale = alone.abs().max()
    close = CLOSE.get(weight.dtype, 5e-2) * scale
    return bool((padded - otherwise).abs().max() <= 1e-5 * scale and (padded - alone).abs().max() <= close)
