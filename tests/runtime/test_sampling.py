"""Sampling does what transformers' logits processors do, follows its seed, and costs little."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shears.config import SamplingConfig
from shears.errors import InputError
from shears.runtime.continuation import Sampler, draw, penalised


def sampled(temperature: float, top_k: int, top_p: float, penalty: float, seed: int = 0) -> SamplingConfig:
    return SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty, seed=seed)


GREEDY = sampled(0.0, 0, 1.0, 1.0)


def _logits(size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    numbers: np.ndarray = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * np.float32(spread)
    return numbers


def _oracle(logits: np.ndarray, sampling: SamplingConfig, seen: list[int]) -> np.ndarray:
    """The probabilities that transformers draws from."""
    ids, scores = torch.tensor([seen]), torch.from_numpy(logits.copy())[None]
    scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    probabilities: np.ndarray = scores.softmax(dim=-1)[0].numpy()
    return probabilities


CASES = [
    sampled(1.0, 0, 1.0, 1.0),
    sampled(0.7, 0, 1.0, 1.0),
    sampled(1.0, 5, 1.0, 1.0),
    sampled(1.0, 0, 0.8, 1.0),
    sampled(1.5, 0, 0.3, 1.0),
    sampled(0.8, 12, 0.9, 1.3),
    sampled(2.0, 300, 0.5, 0.7),
]


@pytest.mark.parametrize("sampling", CASES)
def test_tokens_are_drawn_as_often_as_transformers_would(sampling: SamplingConfig) -> None:
    logits, seen, draws = _logits(600), [3, 5, 5, 8], 4000
    expected = _oracle(logits, sampling, seen)
    random = np.random.default_rng(0)
    scores = penalised(logits, set(seen), sampling.repetition_penalty)
    counts = np.bincount([draw(scores, sampling, random) for _ in range(draws)], minlength=600)
    assert counts[expected == 0].sum() == 0
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 5 * deviation + 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    logits = _logits(300)
    logits[7] = value
    for sampling in (GREEDY, sampled(1.0, 5, 0.9, 1.0)):
        with pytest.raises(InputError, match="must be numbers"):
            Sampler(sampling, []).next(logits)


@pytest.mark.parametrize("num_allowed", [1, 3, 40, 250])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.8}])
def test_a_grammar_leaves_the_distribution_of_the_allowed_tokens(num_allowed: int, options: dict[str, Any]) -> None:
    """Oracle: a vocabulary that holds the allowed tokens alone."""
    draws = np.random.default_rng(num_allowed)
    for seed in range(20):
        logits = draws.normal(size=300).astype(np.float32) * 3
        allowed = np.zeros(300, dtype=np.bool_)
        allowed[draws.permutation(300)[:num_allowed]] = True
        sampling = SamplingConfig(**options, seed=seed)
        token = Sampler(sampling, []).next(logits, allowed)
        assert allowed[token]
        alone = Sampler(sampling, []).next(logits[allowed])
        assert np.flatnonzero(allowed)[alone] == token
