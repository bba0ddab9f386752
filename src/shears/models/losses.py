"""The loss of completion tokens, for training and for scoring: logits only where a label needs them.

B examples, P packed rows of L tokens, T tokens, K positions that carry labels, V words of the vocabulary.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn

from shears.errors import InputError

IGNORED = -100  # label of a token that does not count
CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # keys of configurations


def num_positions(model: nn.Module) -> int | None:
    """Return the number of positions in a model's configuration; None where it has none."""
    config: Any = getattr(own_model(model), "config", None)
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


def kept_logits(labels: Int[Tensor, "B T"]) -> int:
    """Return the number of trailing positions that predict all labels (from the one before the first label)."""
    labelled = (labels != IGNORED).any(dim=0).nonzero()
    return int(labels.shape[1] - labelled[0].item() + 1) if len(labelled) else 1


def trailing_logits(model: nn.Module, batch: Mapping[str, Tensor], keep: int) -> Float[Tensor, "B K V"]:
    """Return the logits of the last `keep` positions, computing no others where the model's forward allows it.

    Labels, and keys of the batch that the forward does not take (such as position_ids), are left out.
    """
    takes = forward_parameters(model)
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name in takes - {"labels"}}
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = keep
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[:, -keep:]


class Predictions(NamedTuple):
    """Logits at K positions, the target token of each, and the row or example that it belongs to."""

    logits: Float[Tensor, "K V"]
    targets: Int[Tensor, " K"]
    rows: Int[Tensor, " K"]

    def losses(self) -> Float[Tensor, " K"]:
        """Return the negative log-likelihood of each target in float32, 0 without a label."""
        return torch.nn.functional.cross_entropy(
            self.logits.float(), self.targets, ignore_index=IGNORED, reduction="none"
        )


def padded_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return the predictions of all rows from the position before the first label of any row, row after row.

    `batch` holds input_ids, attention_mask, position_ids and labels, padded on the left: completions end together, so
    that K is about the number of rows times the longest completion.
    """
    labels = batch["labels"]
    keep = min(kept_logits(labels), labels.shape[1])
    logits = trailing_logits(model, batch, keep)[:, :-1]
    targets = labels[:, labels.shape[1] - keep + 1 :]
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand(targets.shape)
    return Predictions(logits.flatten(0, 1), targets.flatten(), rows.flatten())


def completion_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
    """Return each labelled token's negative log-likelihood in float32, 0 without a label.

    `batch` is as in `padded_predictions`.
    """
    return padded_predictions(model, batch).losses().view(len(batch["labels"]), -1)


def packed_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return the predictions at the K positions before the labels of packed rows, with their examples.

    `batch` holds input_ids, position_ids, labels and examples, each Int "P L" (see `data.packing`). The head runs on
    these positions only; without any label, on one position without a target.
    """
    predicting = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    if not predicting.any():
        predicting[0, 0] = True
    logits = logits_at(model, {name: batch[name] for name in ("input_ids", "position_ids")}, predicting)
    return Predictions(logits, batch["labels"].roll(-1, dims=1)[predicting], batch["examples"][predicting])


def packed_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Return the losses of the K labelled tokens of packed rows, and the example each belongs to."""
    predictions = packed_predictions(model, batch)
    return predictions.losses(), predictions.rows


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Float[Tensor, "K V"]:
    """Return the logits at the K wanted positions, row after row, computing no others where the head can be hooked.

    Labels, and keys of the batch that the forward does not take (such as position_ids), are left out.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name in forward_parameters(model) - {"labels"}}

    # transformers' `logits_to_keep` selects the same positions of every row, and packed rows need different ones
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of positions is not static
    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[wanted][None], *args[1:]) if hidden.shape[:2] == wanted.shape else args

    head = own_model(model).get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(choose) if isinstance(head, nn.Module) else None
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[wanted] if logits.shape[:2] == wanted.shape else logits.flatten(0, -2)
