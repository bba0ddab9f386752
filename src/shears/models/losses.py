"""The loss of completion tokens, for training and for scoring: logits only where a label needs them.

B examples, P packed rows of L tokens, T tokens, K positions that carry labels, V words of the vocabulary.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn

IGNORED = -100


CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # where configurations say it


def num_positions(model: nn.Module) -> int | None:
    """Return how many positions a model was made for; None where its configuration names none."""
    config: Any = getattr(own_model(model), "config", None)
    config = config.get_text_config() if config is not None else None
    found = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def within_context(model: nn.Module, tokens: int) -> int:
    """Return so many tokens, or as many as the model has positions for where these are fewer."""
    return min(tokens, num_positions(model) or tokens)


def own_model(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT, distributed and compiled wrappers."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names the model's own forward takes, looking through wrappers."""
    return frozenset(inspect.signature(own_model(model).forward).parameters)


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


class Predictions(NamedTuple):
    """What a model says at K positions, what it should say there, and the row or example each of them belongs to."""

    logits: Float[Tensor, "K V"]
    targets: Int[Tensor, " K"]
    rows: Int[Tensor, " K"]

    def losses(self) -> Float[Tensor, " K"]:
        """Return each target's negative log-likelihood in float32, 0 where there is no label."""
        return torch.nn.functional.cross_entropy(
            self.logits.float(), self.targets, ignore_index=IGNORED, reduction="none"
        )


def padded_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return what is predicted from the position before the first label of any row on, row after row.

    `batch` holds input_ids, attention_mask, position_ids and labels, padded on the left, so that completions end
    together and a row's share of K is about the longest completion.
    """
    labels = batch["labels"]
    keep = min(kept_logits(labels), labels.shape[1])
    logits = trailing_logits(model, batch, keep)[:, :-1]
    targets = labels[:, labels.shape[1] - keep + 1 :]
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand(targets.shape)
    return Predictions(logits.flatten(0, 1), targets.flatten(), rows.flatten())


def completion_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
    """Return each labelled token's negative log-likelihood in float32, 0 where there is no label.

    `batch` is what `padded_predictions` takes.
    """
    return padded_predictions(model, batch).losses().view(len(batch["labels"]), -1)


def packed_predictions(model: nn.Module, batch: Mapping[str, Tensor]) -> Predictions:
    """Return what is predicted at the K positions before the labels of packed rows, by example.

    `batch` holds input_ids, position_ids, labels and examples, each Int "P L" (see `data.packing`). The head runs on
    these positions only; where there is no label at all, on one position, without a target.
    """
    predicting = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    if not predicting.any():
        predicting[0, 0] = True
    logits = logits_at(model, {name: batch[name] for name in ("input_ids", "position_ids")}, predicting)
    return Predictions(logits, batch["labels"].roll(-1, dims=1)[predicting], batch["examples"][predicting])


def packed_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Return the losses of the K labelled tokens of packed rows, and the example each belongs to."""
    found = packed_predictions(model, batch)
    return found.losses(), found.rows


def logits_at(model: nn.Module, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Float[Tensor, "K V"]:
    """Return the logits at the K wanted positions, row after row, computing no others where the head can be hooked.

    Of the batch, what the forward does not take (position_ids of some models) and the labels are left out.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name in forward_parameters(model) - {"labels"}}
    with _head_on(model, wanted):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[wanted] if logits.shape[:2] == wanted.shape else logits.flatten(0, -2)


@contextmanager
def _head_on(model: nn.Module, positions: Bool[Tensor, "P L"]) -> Iterator[None]:
    """Let the output head see the hidden states of these positions only, as one row of K.

    `logits_to_keep` of transformers takes the same positions of every row; packed rows have each their own.
    """

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # how many positions is no shape that a graph could know
    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[positions][None], *args[1:]) if hidden.shape[:2] == positions.shape else args

    head = own_model(model).get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(choose) if isinstance(head, nn.Module) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
