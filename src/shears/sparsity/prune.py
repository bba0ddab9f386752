"""Prune a model in memory: the linears of its decoder blocks, and nothing else."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.models import decoder_blocks, linears, matching, weight_oi
from shears.recipe import SparsifyConfig
from shears.sparsity.masks import lowest_per_row
from shears.sparsity.scores import SCORES, Score, magnitude_scores
from shears.sparsity.walk import walk_blocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearSparsity:
    """Zeros of one linear; `shape` is (outputs, inputs)."""

    shape: tuple[int, int]
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class SparsityReport:
    """What pruning did: the target, the pruned linears by name, the share of block weights it could not reach."""

    target: float
    linears: Mapping[str, LinearSparsity]
    uncovered: float

    @property
    def achieved(self) -> float:
        """Share of zeros over all pruned linears."""
        weights = sum(linear.shape[0] * linear.shape[1] for linear in self.linears.values())
        return sum(linear.zeros for linear in self.linears.values()) / weights


@torch.no_grad()
def sparsify_model(
    model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]], config: SparsifyConfig
) -> SparsityReport:
    """Set the lowest-scored weights of every output row of the target linears to zero, in place, block by block.

    `batches` are calibration token ids; a score that looks at weights alone needs none. Embeddings, norms and head
    stay bitwise as they are. InputError where there is nothing to prune or a weight is not finite.
    """
    chosen, score = target_linears(model, config.targets), SCORES[config.method]
    _check_weights(chosen)
    uncovered = _report_uncovered(model, chosen)
    done: dict[str, LinearSparsity] = {}

    def visit(name: str, block: nn.Module, norms: Mapping[str, Float[Tensor, " _"]]) -> None:
        for key in [key for key in chosen if key.startswith(f"{name}.")]:
            done[key] = _prune(key, chosen[key], score, norms.get(key), config.sparsity)

    if score.needs_inputs:
        _check_batches(model, batches)
        walk_blocks(model, batches, chosen, visit)
    else:
        prefix, blocks = decoder_blocks(model)
        for index, block in enumerate(blocks):
            visit(f"{prefix}.{index}", block, {})
    return SparsityReport(config.sparsity, done, uncovered)


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Return the linears of the decoder blocks that a target matches, all for no target, by name in the model."""
    prefix, blocks = decoder_blocks(model)
    known = {f"{prefix}.{name}": linear for name, linear in linears(blocks).items()}
    if not known:
        raise InputError(
            f"the model must have linears in its decoder blocks; {type(model).__name__} has none in {prefix}"
        )
    return {name: known[name] for name in matching(known, targets)} if targets else known


def _check_weights(chosen: Mapping[str, nn.Module]) -> None:
    for name, linear in chosen.items():
        weight = linear.get_parameter("weight")
        if not weight.is_floating_point() or weight.ndim != 2:
            raise InputError(
                f"weights must be plain numbers to be pruned, {name} is {weight.dtype}; load it unquantized"
            )
        if not torch.isfinite(weight).all():
            raise InputError(f"weights must be finite, {name} holds NaN or infinity; get a sound copy of the model")


def _check_batches(model: PreTrainedModel, batches: Sequence[Int[Tensor, "_ _"]]) -> None:
    if not batches:
        raise InputError("there must be at least one batch of calibration tokens, got none; give a calibration text")
    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise InputError(f"calibration token ids must be below {vocabulary}, got {largest}; use this model's tokenizer")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = max(batch.shape[1] for batch in batches)
    if context is not None and length > context:
        raise InputError(f"sequence_length must be at most this model's context of {context} tokens, got {length}")


def _report_uncovered(model: nn.Module, chosen: Mapping[str, nn.Module]) -> float:
    """Return the share of block weights outside the chosen linears; warn of those that are no linears at all."""
    prefix, blocks = decoder_blocks(model)
    sizes = {f"{prefix}.{name}": weight.numel() for name, weight in blocks.named_parameters() if weight.ndim >= 2}
    reachable = {f"{prefix}.{name}.weight" for name in linears(blocks)}
    beyond = {name: size for name, size in sizes.items() if name not in reachable}
    total = sum(sizes.values())
    if beyond:
        largest = max(beyond, key=lambda name: beyond[name])
        logger.warning(
            "%.1f %% of the block weights are in no linear and stay DENSE (%s and %d more)",
            100 * sum(beyond.values()) / total,
            largest,
            len(beyond) - 1,
        )
    covered = sum(sizes[f"{name}.weight"] for name in chosen)
    logger.info("pruning %d linears, %.1f %% of the block weights", len(chosen), 100 * covered / total)
    return 1 - covered / total


def _prune(
    name: str, linear: nn.Module, score: Score, input_norm: Float[Tensor, " I"] | None, sparsity: float
) -> LinearSparsity:
    weight = weight_oi(linear)
    if score.needs_inputs and input_norm is None:
        logger.warning("no calibration token reached %s: pruned by magnitude alone", name)
    scores = magnitude_scores(weight) if input_norm is None else score.compute(weight, input_norm)
    weight.masked_fill_(lowest_per_row(scores, sparsity), 0.0)
    return LinearSparsity((weight.shape[0], weight.shape[1]), int((weight == 0).sum()))
