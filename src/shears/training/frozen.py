"""Frozen linears held in the number format that they compute in: no cast a step, half the memory, the same bits."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.models.blocks import linears
from shears.models.devices import DTYPES, autocast
from shears.models.properties import own_model
from shears.models.sparse_adapter import SparseLinear
from shears.training.batches import TRIAL_ERRORS, drawn

logger = logging.getLogger(__name__)
TRIAL = 8  # tokens


def hold_as_computed(model: nn.Module, precision: str) -> int:
    """Convert frozen linears to `precision`, in place; return how many, 0 where a trial shows that an output changes.

    Autocast would convert them in every forward and again in every backward pass. What lies outside of linears
    (embeddings, norms) and what shares its weight with something else keeps its numbers: they are read as they are.
    """
    dtype = DTYPES[precision]
    device = next(model.parameters()).device
    chosen = [] if precision == "fp32" else [each for each in _convertible(model) if each.weight.dtype != dtype]
    if not chosen:
        return 0
    expected = _trial(model, precision, device)
    before = [(linear, dict(linear.named_parameters(recurse=False))) for linear in chosen]
    for linear, parameters in before:
        for name, parameter in parameters.items():
            setattr(linear, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    actual = None if expected is None else _trial(model, precision, device)
    if expected is not None and actual is not None and torch.equal(expected, actual):
        _leave_files(model, chosen)
        return len(chosen)
    for linear, parameters in before:
        for name, parameter in parameters.items():
            setattr(linear, name, parameter)
    logger.info("this model computes with its weights outside of its linears: they keep their number format")
    return 0


def _leave_files(model: nn.Module, converted: Sequence[nn.Module]) -> None:
    """Copy the other frozen parameters on a CPU: while one of them lies in a mapped file, every page of it counts."""
    done = {id(parameter) for linear in converted for parameter in linear.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad and id(parameter) not in done and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _convertible(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the frozen plain linears that own their weights; those of a sparse adapter add to theirs in float32."""
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    masked = {id(layer.get_base_layer()) for layer in model.modules() if isinstance(layer, SparseLinear)}
    for linear in linears(model).values():
        own = list(linear.parameters())
        frozen = all(each.is_floating_point() and not each.requires_grad and owners[id(each)] == 1 for each in own)
        if type(linear) in (nn.Linear, Conv1D) and id(linear) not in masked and frozen:
            yield linear  # type: ignore[misc]


@torch.no_grad()
def _trial(model: nn.Module, precision: str, device: torch.device) -> Tensor | None:
    """Return the logits of a few tokens as training computes them; None where that fails."""
    was_training = model.training
    model.eval()
    try:
        with autocast(precision, device):
            ids = torch.tensor(drawn(model, TRIAL), device=device)
            logits: Tensor = own_model(model)(input_ids=ids, use_cache=False).logits
            return logits
    except TRIAL_ERRORS as error:
        logger.debug("trial of weights in %s: %s", precision, error)
        return None
    finally:
        model.train(was_training)
