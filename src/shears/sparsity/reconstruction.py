"""Fit the kept weights of pruned blocks to the dense model's hidden states, by gradient steps.

The window is a whole block, so that attention, norms and gates lie inside of it: fits of single
matrices leave errors that add up (arXiv 2510.14444). Its inputs are those of the pruned model, its
targets the hidden states of the dense one at that depth, so that a block also makes up for the
blocks before it.

Shapes: B sequences, T tokens, H hidden features.
"""

import logging
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.models.activations import Activations
from shears.models.blocks import Matrix
from shears.models.walk import BlockRun, Walk, differentiable
from shears.sparsity.rewrite import in_format

logger = logging.getLogger(__name__)
EPOCHS = 2  # over the calibration sequences; every step sees one batch
REACHES = (0.3, 0.1, 0.03, 0.01)
"""First steps over the root of the error times the root mean square of a parameter's weights."""
BETAS = (0.9, 0.95)


class _Fitted(NamedTuple):
    """A parameter, its values in float32 (the same memory if it is float32) and which are kept."""

    parameter: Tensor
    values: Float[Tensor, "..."]
    kept: Bool[Tensor, "..."]

    def store(self) -> None:
        if self.values.data_ptr() != self.parameter.data_ptr():
            self.parameter.detach().copy_(self.values)


class Reconstruction:
    """Fits the blocks of a walk in order; `dense` takes the dense model's hidden states.

    The first block tries every reach; others take its best, or the next that lowers the error.
    """

    def __init__(self, walk: Walk, dense: Activations, seed: int) -> None:
        self._dense = dense
        self._seed = seed
        self.reach = 0.0  # of the blocks before; 0 until one was fitted
        for states in walk.hidden:
            dense.append(states)

    def look(self, run: BlockRun) -> None:
        for batch, states in enumerate(self._dense):
            self._dense[batch] = run.forward(batch, states)

    def fit(self, run: BlockRun, matrices: Sequence[Matrix]) -> None:
        """Fit the nonzero weights of `matrices` in place; log the errors of the block's outputs.

        The steps are Adam's in float32, and their length falls linearly to 0. The first is longer
        where the outputs are further from the targets: the method and the sparsity decide how far
        weights have to go. If no reach lowers the error, the fit is undone.
        """
        parameters = [run.model.get_parameter(name) for name in dict.fromkeys(each.parameter for each in matrices)]
        fitted = [_Fitted(each, each.detach().float(), each.detach() != 0) for each in parameters]
        pruned = error = block_error(run, self._dense)
        start = best = [each.values.clone() for each in fitted]
        taken = 0.0
        for tried in [each for each in REACHES if pruned and each <= (self.reach or each)]:
            _set(fitted, start)
            _descend(run, fitted, self._dense, f"reconstruct/{self._seed}/{run.index}", tried * pruned**0.5)
            found = block_error(run, self._dense)
            if found < error:  # not if it is NaN
                error, taken, best = found, tried, [each.values.clone() for each in fitted]
                if self.reach:
                    break
        _set(fitted, [in_format(own, each.kept, each.parameter.dtype) for each, own in zip(fitted, best, strict=True)])
        self.reach = self.reach or taken
        logger.info(
            "%s: relative error of the outputs %.3g, after the fit %.3g (reach %g)", run.name, pruned, error, taken
        )


def _set(fitted: Sequence[_Fitted], values: Sequence[Tensor]) -> None:
    for each, own in zip(fitted, values, strict=True):
        each.values.copy_(own)
        each.store()


def _descend(run: BlockRun, fitted: Sequence[_Fitted], targets: Activations, stream: str, rate: float) -> None:
    groups = []
    for each in fitted:
        kept = each.values[each.kept]
        size = float(kept.square().mean().sqrt()) if kept.numel() else 0.0
        groups.append({"params": [each.values], "lr": rate * size})
    adam = torch.optim.Adam(groups, betas=BETAS, fused=True)
    scaler = torch.amp.GradScaler(enabled=fitted[0].values.is_cuda)  # by 2^n: exact but in fp16
    steps = EPOCHS * len(targets)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    parameters = [each.parameter for each in fitted]
    generator = random.Random(stream)
    order = [batch for _ in range(EPOCHS) for batch in generator.sample(range(len(targets)), len(targets))]
    with differentiable(parameters):
        for batch in order:
            with torch.enable_grad():
                loss = scaler.scale(output_error(run.forward(batch), targets[batch]))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for each, gradient in zip(fitted, gradients, strict=True):
                # Adam's step of a weight whose gradients are all 0 is exactly 0
                each.values.grad = None if gradient is None else gradient.float().mul_(each.kept)
            scaler.step(adam)
            scaler.update()
            schedule.step()
            for each in fitted:
                each.store()


def output_error(outputs: Float[Tensor, "B T H"], targets: Float[Tensor, "B T H"]) -> Float[Tensor, ""]:
    """Return the squared distance of outputs to targets over the targets' square, mean over tokens.

    So the few tokens whose hidden states are a thousand times larger count like the others.
    """
    wide = targets.float()
    missed = (outputs.float() - wide).square().sum(-1)
    return (missed / wide.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)).mean()


def block_error(run: BlockRun, targets: Activations) -> float:
    errors = [float(output_error(outputs, target)) for outputs, target in zip(run.outputs(), targets, strict=True)]
    return sum(errors) / len(errors)
