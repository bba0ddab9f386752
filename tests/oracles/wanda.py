"""Wanda, restated literally and slowly from arXiv 2306.11695 (section 3, algorithm 1); knows nothing of shears.

For every block in order: run the *whole* model on every sequence, one at a time, with hooks on the block's linears
(the blocks before are pruned by then), take the L2 norm of each input feature over all tokens, then sort every output
row's scores |W| * ||X|| and set the lowest floor(sparsity * inputs) to zero. The outputs of a pruned block are the
next run of the whole model.
"""

import math

import torch
from torch import Tensor, nn

BLOCKS = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen3": "model.layers",
    "gemma2": "model.layers",
    "phi": "model.layers",
    "phi3": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "bloom": "transformer.h",
}


def is_linear(module: nn.Module) -> bool:
    """Tell linears by the names of their classes; GPT-2's Conv1D is a linear stored transposed."""
    return type(module).__name__ in ("Linear", "Conv1D")


def outputs_by_inputs(linear: nn.Module) -> Tensor:
    """Return a copy of the weight with a row per output."""
    weight = linear.get_parameter("weight").detach()
    return (weight.t() if type(linear).__name__ == "Conv1D" else weight).clone()


@torch.no_grad()
def prune(model: nn.Module, sequences: list[Tensor], sparsity: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Prune the model in place; return {linear: (scores, pruned)}, both outputs x inputs."""
    prefix = BLOCKS[str(model.config.model_type)]  # type: ignore[union-attr]
    found = {}
    for index, block in enumerate(model.get_submodule(prefix).children()):
        linears = {f"{prefix}.{index}.{name}": module for name, module in block.named_modules() if is_linear(module)}
        norms = input_norms(model, linears, sequences)
        for name, linear in linears.items():
            scores = outputs_by_inputs(linear).double().abs() * norms[name]
            pruned = lowest(scores, sparsity)
            found[name] = (scores, pruned)
            stored = pruned.t() if type(linear).__name__ == "Conv1D" else pruned
            linear.get_parameter("weight")[stored] = 0.0
    return found


def input_norms(model: nn.Module, linears: dict[str, nn.Module], sequences: list[Tensor]) -> dict[str, Tensor]:
    """Return the L2 norm of every input feature over the tokens of all sequences, in float64."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}
    handles = [
        linear.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach().double()))
        for name, linear in linears.items()
    ]
    for sequence in sequences:
        model(sequence.reshape(1, -1), use_cache=False)
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).norm(dim=0)
        for name, parts in seen.items()
    }


def lowest(scores: Tensor, sparsity: float) -> Tensor:
    """Return the pruned mask by a full stable sort of every row."""
    pruned = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(scores.shape[0]):
        order = sorted(range(scores.shape[1]), key=scores[row].tolist().__getitem__)
        pruned[row, order[: math.floor(sparsity * scores.shape[1])]] = True
    return pruned
