"""Divergences of a student from its teacher, word by word, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def probabilities(logits: Sequence[float]) -> list[float]:
    """Return the softmax."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def divergence(student: Sequence[float], teacher: Sequence[float]) -> float:
    """Return sum p log(p / q) of two distributions, p the teacher's."""
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True) if p > 0)


def in_buckets(distribution: Sequence[float], kept: Sequence[int]) -> list[float]:
    """Return the probabilities of the kept words, then that of all others together."""
    return [distribution[word] for word in kept] + [sum(p for word, p in enumerate(distribution) if word not in kept)]


def kl_from_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of every position, from logits of all words."""
    wanted, found = (logits.double().log_softmax(-1) for logits in (teacher, student))
    return torch.sum(wanted.exp() * (wanted - found), -1)
