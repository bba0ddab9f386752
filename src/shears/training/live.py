"""A teacher that is a model in memory."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from shears.models.devices import autocast, device_of, resolved_precision
from shears.models.properties import own_model
from shears.training.distillation import Logits
from shears.training.frozen import hold_as_computed
from shears.training.losses import before_head, logits_at, product_dtype, takes_pieces


class LiveTeacher:
    """Runs a frozen model on every batch, without gradients; its head runs when the student's does, in pieces.

    `precision` is the arithmetic (see `devices.autocast`). The model is put into evaluation mode and frozen, and its
    linears are held as they compute.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model = model.eval().requires_grad_(False)
        hold_as_computed(self.model, resolved_precision(precision, device_of(model)))
        self.precision = precision
        self.head = self._head() if takes_pieces(model) else None

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Return the head's weight and bias in the arithmetic: autocast would convert the weight for every piece."""
        head: Any = own_model(self.model).get_output_embeddings()  # type: ignore[operator]
        with autocast(self.precision, device_of(self.model)):
            dtype = product_dtype(head.weight)
        return head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)

    @torch.no_grad()
    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Logits:
        """Return the model's targets of the wanted positions."""
        names = (
            ("input_ids", "position_ids") if "examples" in batch else ("input_ids", "attention_mask", "position_ids")
        )
        device = device_of(self.model)
        inputs = {name: batch[name].to(device) for name in names}
        with autocast(self.precision, device):
            if self.head is not None:  # it may run outside of autocast, which would convert its input
                hidden = before_head(self.model, inputs, wanted.to(device))
                return Logits(hidden.to(self.head[0].dtype), *self.head)
            return Logits(logits_at(self.model, inputs, wanted.to(device)))
