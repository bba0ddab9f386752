"""Selective recomputation: a block keeps its matrix products for the backward pass and recomputes the rest.

The operations between two products (norms, rotations, activations, sums, casts, LoRA's narrow products) are cheap to
compute, but keeping their results takes most of the memory. The recomputed values are the same bits: a rank
configuration is set before the forward and never inside it.
"""

import logging
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from shears.adapt.elastic import lora_layers

logger = logging.getLogger(__name__)
TRIAL = 4  # tokens
KEPT_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm", "_int_mm", "_scaled_mm")
ATTENTION_PREFIX = "_scaled_dot_product"  # of all of torch's fused attentions


def recompute_between_products(model: PeftModel) -> bool:
    """Make every decoder block keep only the results that `keeps` selects; return whether a trial shows that it works.

    The inverse is `model.get_base_model().activation_checkpointing_disable()`. The model's training mode, its gradients
    and torch's generators stay as they are.
    """
    base = model.get_base_model()
    if base.supports_gradient_checkpointing:
        narrow = max(layer.lora_A["default"].weight.shape[0] for _, layer in lora_layers(model, "default"))
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, narrow))
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        if _works(model):
            return True
        base.activation_checkpointing_disable()
    logger.info("this model cannot recompute between its matrix products: training takes more memory")
    return False


def _works(model: PeftModel) -> bool:
    """Try a backward pass: some blocks modify kept results in place, which torch refuses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            ids = torch.arange(TRIAL, device=trained[0].device)[None]
            torch.autograd.grad(model(input_ids=ids, use_cache=False).logits.sum(), trained, allow_unused=True)
    except RuntimeError as error:
        logger.debug("recomputing between products: %s", error)
        return False
    finally:
        model.train(was_training)
    return True


def _policy(narrow: int, _context: Any, operator: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if keeps(operator, args, narrow) else CheckpointPolicy.PREFER_RECOMPUTE


def keeps(operator: torch._ops.OpOverload, args: tuple[Any, ...], narrow: int) -> bool:
    """Tell whether a result is kept: attention, and products whose inner dimension is larger than `narrow`."""
    name = operator._schema.name.removeprefix("aten::")
    if name.startswith(ATTENTION_PREFIX):
        return True
    if name not in KEPT_PRODUCTS:
        return False
    factors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.ndim > 1]
    return factors[0].shape[-1] > narrow
