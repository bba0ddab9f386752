"""Less memory at hardly any time: a block keeps its matrix products for the backward pass and makes the rest again.

What lies between two products (norms, rotations, activations, sums, casts, and LoRA's narrow products) costs little to
compute and most of the memory to keep. The recomputed values are the same bits: a rank configuration is set before the
forward and never inside it.
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
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm", "_int_mm", "_scaled_mm")
ATTENTION = "_scaled_dot_product"  # how the names of all of torch's fused attentions begin


def recompute_between_products(model: PeftModel) -> bool:
    """Make every decoder block keep only what `keeps` says; tell whether the model can, of which a trial decides.

    The inverse is `model.get_base_model().activation_checkpointing_disable()`. The model is in training mode or not, as
    before; its gradients and torch's generators are not touched.
    """
    base = model.get_base_model()
    if base.supports_gradient_checkpointing:
        narrow = max(layer.lora_A["default"].weight.shape[0] for _, layer in lora_layers(model, "default"))
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, narrow))
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        if _works(model):
            return True
        base.activation_checkpointing_disable()
    logger.info("this model cannot recompute what lies between its matrix products: training takes more memory")
    return False


def _works(model: PeftModel) -> bool:
    """Try a backward pass: some blocks write into results that would be kept, which torch refuses."""
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
    """Tell whether a result is kept: of attention, and of products that sum over more than `narrow` numbers."""
    name = operator._schema.name.removeprefix("aten::")
    if name.startswith(ATTENTION):
        return True
    if name not in PRODUCTS:
        return False
    factors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.ndim > 1]
    return factors[0].shape[-1] > narrow
