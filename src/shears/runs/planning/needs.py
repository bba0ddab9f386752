"""What stages need, from shapes alone. Pure arithmetic; bytes, and only what can be counted (activations cannot)."""

from collections.abc import Mapping

FP32 = 4
ADAM = 4 * FP32  # weight, gradient and two moments of a trained weight, all fp32

Sides = Mapping[str, tuple[int, int]]  # outputs and inputs of every linear


def adapter_parameters(sides: Sides, ranks: Mapping[str, int]) -> int:
    """Return the weights of LoRA adapters, rank x (outputs + inputs) of every adapted linear."""
    return sum(rank * sum(sides[name]) for name, rank in ranks.items())


def pruning_memory(beside: int, block: int, hidden: int, largest_moments: int) -> int:
    """Return what pruning block by block holds: embeddings, a block and its copy, hidden states, second moments.

    All in fp32; `hidden` are the bytes of hidden states in memory, `largest_moments` inputs squared of the widest
    linear, 0 for methods that need only norms.
    """
    return FP32 * (beside + 2 * block + 2 * largest_moments) + hidden


def training_memory(model_bytes: int, adapter: int) -> int:
    """Return what training holds without activations: the frozen model, the adapter, its gradients and moments."""
    return model_bytes + ADAM * adapter


def quantized_bytes(model_bytes: int, weights: int, others: int, bits: float) -> int:
    """Return the size of a model in memory whose linears are quantized, `others` as they are in its files."""
    return round(weights * bits / 8 + model_bytes * others / (weights + others))


def packed_bytes(weights: int, others: int, sparsity: float, each: int = 2, beside: int = 2) -> int:
    """Return the size of a package: a bit a weight of the linears and `each` bytes a kept one, `beside` of all others.

    Linears that would not become smaller stay as they are.
    """
    dense = max(each, beside) * weights
    return round(min(weights / 8 + each * (1 - sparsity) * weights, dense) + beside * others)


def running_memory(model_bytes: int, adapter: int) -> int:
    """Return what evaluation holds without activations."""
    return model_bytes + FP32 * adapter
