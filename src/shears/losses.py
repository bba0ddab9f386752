"""The loss of completion tokens, for training and for scoring: logits only where a label needs them.

B examples, T tokens, K trailing positions that carry labels, V words of the vocabulary.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn

IGNORED = -100


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names the model's own forward takes, looking through PEFT and distributed wrappers."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):  # DistributedDataParallel and its kin
        model = inner
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return frozenset(inspect.signature(base.forward).parameters)


def kept_logits(labels: Int[Tensor, "B T"]) -> int:
    """Return how many trailing positions are needed to predict every label (one before the first of them)."""
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    return int(labels.shape[1] - labelled[0].item() + 1) if len(labelled) else 1


def trailing_logits(model: nn.Module, batch: Mapping[str, Tensor], keep: int) -> Float[Tensor, "B K V"]:
    """Return the logits of the last `keep` positions, computing no others where the model's forward allows it.

    Of the batch, what the forward does not take (position_ids of some models) and the labels are left out.
    """
    takes = forward_parameters(model)
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name in takes - {"labels"}}
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = keep
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[:, -keep:]


def completion_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
    """Return each labelled token's negative log-likelihood in float32, 0 where there is no label.

    `batch` holds input_ids, attention_mask, position_ids and labels, padded on the left, so that completions end
    together and K is about the longest completion.
    """
    labels = batch["labels"]
    keep = min(kept_logits(labels), labels.shape[1])
    logits = trailing_logits(model, batch, keep)[:, :-1]
    targets = labels[:, labels.shape[1] - keep + 1 :]
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape)
