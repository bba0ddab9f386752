"""The published Wanda procedure, written again: the baseline for the speed of our pass.

It follows the authors' code for Llama models (arXiv 2306.11695) in everything that costs time. Sequences go through a
block one at a time and twice: once to measure, and once, after pruning, for the inputs of the next block. Every linear
computes the norms of its own inputs, even where q, k and v get the same. Every row of scores is fully sorted.

Shapes: N sequences, T tokens, H hidden features, O output and I input features of a linear.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class _Caught(Exception):  # noqa: N818  # no error: ends a forward that has reached the first block
    pass


class InputStatistic:
    """The running mean over samples of the squared L2 norm of each input feature, in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        self.mean_square: Float[Tensor, " I"] = torch.zeros(linear.in_features, device=linear.weight.device)
        self.num_samples = 0

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of one call, samples x T x I."""
        samples = inputs.shape[0]
        features = inputs.reshape(-1, inputs.shape[-1]).t().float()
        self.mean_square *= self.num_samples / (self.num_samples + samples)
        self.num_samples += samples
        self.mean_square += torch.norm(features, p=2, dim=1) ** 2 / self.num_samples


@torch.no_grad()
def reference_wanda(model: LlamaForCausalLM, sequences: Sequence[Tensor], sparsity: float) -> dict[str, Tensor]:
    """Prune the model in place; return the pruned masks (O x I) by the linears' names.

    `sequences` are token ids of one length, 1 x T each. The attention mask is that of transformers for one unpadded
    sequence, recorded with the block's other keywords.
    """
    inputs, keywords = first_inputs(model, sequences)
    outputs = torch.zeros_like(inputs)
    masks: dict[str, Tensor] = {}
    for index, block in enumerate(model.model.layers):
        linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        statistics = {name: InputStatistic(linear) for name, linear in linears.items()}
        with _measuring(linears, statistics):
            _run(block, inputs, outputs, keywords)
        for name, linear in linears.items():
            mask = lowest(linear.weight, statistics[name].mean_square, sparsity)
            linear.weight[mask] = 0.0
            masks[f"model.layers.{index}.{name}"] = mask
        _run(block, inputs, outputs, keywords)
        inputs, outputs = outputs, inputs
    return masks


def first_inputs(model: LlamaForCausalLM, sequences: Sequence[Tensor]) -> tuple[Float[Tensor, "N T H"], dict[str, Any]]:
    """Return the inputs of the first block for all sequences, and the block's other keywords."""
    caught: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args[0], kwargs))
        raise _Caught

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for sequence in sequences:
            with suppress(_Caught):
                model(sequence.reshape(1, -1).to(model.device), use_cache=False)
    finally:
        handle.remove()
    return torch.cat([hidden for hidden, _ in caught]), caught[-1][1]


def lowest(weight: Float[Tensor, "O I"], mean_square: Float[Tensor, " I"], sparsity: float) -> Bool[Tensor, "O I"]:
    """Return True for the floor(I * sparsity) lowest |W| * ||X|| of every row, by a full sort."""
    scores = weight.abs() * mean_square.sqrt().reshape(1, -1)
    order = torch.sort(scores, dim=-1, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order[:, : int(scores.shape[1] * sparsity)], True)


@contextmanager
def _measuring(linears: dict[str, nn.Linear], statistics: dict[str, InputStatistic]) -> Iterator[None]:
    """Let every linear add its inputs to its own statistic after each of its forwards."""
    handles = [
        linear.register_forward_hook(lambda _, args, output, name=name: statistics[name].add(args[0]))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(block: nn.Module, inputs: Tensor, outputs: Tensor, keywords: dict[str, Any]) -> None:
    for number in range(len(inputs)):
        outputs[number] = block(inputs[number].unsqueeze(0), **keywords)[0]
