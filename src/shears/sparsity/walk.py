"""The one block walk: every method that looks at inputs goes through a model with it, whatever the architecture.

A block's statistics are taken on the outputs of the already changed blocks before it. The keyword arguments of every
block are recorded per block and per batch, because blocks of one model may get different ones (sliding windows).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.models import decoder_blocks
from shears.progress import track
from shears.sparsity.statistics import InputNorms

logger = logging.getLogger(__name__)

Norms = Mapping[str, Float[Tensor, " _"]]
Visit = Callable[[str, nn.Module, Norms], None]
HIDDEN = "hidden_states"
PROBE_TOKENS = 2


class _LastBlockReached(Exception):  # noqa: N818  # no error: ends a forward before the final norm and the head
    pass


@dataclass
class _Calls:
    """What one block was called with: per batch the arguments beside the hidden states."""

    args: list[tuple[Any, ...]] = field(default_factory=list)
    kwargs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Record a call; return its hidden states."""
        rest = dict(kwargs)
        hidden: Tensor = args[0] if args else rest.pop(HIDDEN)
        self.args.append(tuple(args[1:]))
        self.kwargs.append(rest)
        return hidden

    def replay(self, block: nn.Module, batch: int, hidden: Tensor) -> Tensor:
        """Call the block as it was called, with other hidden states."""
        output = block(hidden, *self.args[batch], **self.kwargs[batch])
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


@torch.no_grad()
def walk_blocks(
    model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]], linears: Mapping[str, nn.Module], visit: Visit
) -> None:
    """Go through the decoder blocks in order: measure a block's inputs, let `visit` change it, feed the next.

    `visit(name, block, norms)` gets the block's name and the input norms of those of `linears` (by name in the model)
    that lie in it. The model is left without hooks, also after an error. InputError where hidden states are not finite.
    """
    prefix, blocks = decoder_blocks(model)
    with _evaluating(model):
        hidden, calls = _record(model, blocks, batches)
        _check_finite(hidden, "the embeddings")
        for index, block in enumerate(track(blocks, "sparsify", len(blocks), "block")):
            name = f"{prefix}.{index}"
            with InputNorms(
                {key: linear for key, linear in linears.items() if key.startswith(f"{name}.")}
            ) as statistics:
                for batch, states in enumerate(hidden):
                    calls[index].replay(block, batch, states)
            visit(name, block, statistics.norms())
            if index + 1 < len(blocks):
                hidden = [calls[index].replay(block, batch, states) for batch, states in enumerate(hidden)]
                _check_finite(hidden, name)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _record(
    model: PreTrainedModel, blocks: nn.ModuleList, batches: Sequence[Int[Tensor, "_ _"]]
) -> tuple[list[Tensor], list[_Calls]]:
    """Return the first block's hidden states per batch and every block's calls, without computing any block."""
    extras = _further_outputs(model, blocks, batches[0])
    calls, hidden = [_Calls() for _ in blocks], list[Tensor]()
    with _shadowed(blocks, calls, hidden, extras):
        for batch in batches:
            with suppress(_LastBlockReached):
                model(batch.to(model.device), use_cache=False)
    if any(len(recorded.args) != len(batches) for recorded in calls):
        raise InputError(f"every decoder block must run once in a forward; those of {type(model).__name__} do not")
    return hidden, calls


def _further_outputs(
    model: PreTrainedModel, blocks: nn.ModuleList, batch: Int[Tensor, "B T"]
) -> tuple[Any, ...] | None:
    """Return what a block returns behind its hidden states, or None where it returns a bare tensor."""
    seen: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        model(batch[:1, :PROBE_TOKENS].to(model.device), use_cache=False)
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"every decoder block must run once in a forward; those of {type(model).__name__} do not")
    return seen[0][1:] if isinstance(seen[0], tuple) else None


@contextmanager
def _shadowed(
    blocks: nn.ModuleList, calls: Sequence[_Calls], hidden: list[Tensor], extras: tuple[Any, ...] | None
) -> Iterator[None]:
    """Let every block's forward record its call and pass its hidden states on; the last one ends the forward."""

    def shadow(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states = calls[index].add(args, kwargs)
            if index == 0:
                hidden.append(states)
            if index + 1 == len(blocks):
                raise _LastBlockReached
            return states if extras is None else (states, *extras)

        return forward

    before = [block.__dict__.get("forward") for block in blocks]  # a wrapper that others put on the instance
    try:
        for index, block in enumerate(blocks):
            block.forward = shadow(index)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own


def _check_finite(hidden: Sequence[Tensor], name: str) -> None:
    if not all(torch.isfinite(states).all() for states in hidden):
        raise InputError(
            f"hidden states must be finite, those after {name} are not; check the model's weights, or use dtype fp32"
        )
