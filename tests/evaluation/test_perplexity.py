"""Perplexity: equal to a naive loop over tokens, window by window."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.likelihood import perplexity
from tests.tiny import tiny_model


def _tokens(count: int) -> list[int]:
    return [int(token) for token in torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0))]


def _losses(result: Evaluation) -> list[float]:
    return [record["nll"] for record in result.records]


def _naive(model: PreTrainedModel, tokens: list[int], length: int) -> list[float]:
    """Oracle: every window by itself, one token after the other, in float64."""
    losses = []
    for start in range(0, len(tokens) - length + 1, length):
        window = tokens[start : start + length]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window])).logits[0].double()
        losses.append(sum(-float(logits[i - 1].log_softmax(-1)[window[i]]) for i in range(1, length)))
    return losses


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_it_equals_a_naive_loop(name: str) -> None:
    model, tokens = tiny_model(name), _tokens(75)
    result, expected = perplexity(model, tokens, 16), _naive(model, tokens, 16)
    assert (len(result.records), result.n) == (4, 60)
    assert _losses(result) == pytest.approx(expected, rel=1e-5)  # float32 against float64
    assert result.value == pytest.approx(math.exp(sum(expected) / 60), rel=1e-4)


def test_the_interval_covers_the_value_and_shrinks_with_more_windows() -> None:
    model, tokens = tiny_model(), _tokens(800)
    few, many = perplexity(model, tokens, 16, limit=5), perplexity(model, tokens, 16)
    assert (len(few.records), len(many.records)) == (5, 50)
    for result in (few, many):
        assert result.ci95[0] < result.value < result.ci95[1]
    means = torch.tensor(_losses(many), dtype=torch.float64) / 15
    half = 1.959964 * means.std() / math.sqrt(50)
    assert many.ci95[1] == pytest.approx(float(torch.exp(means.mean() + half)))


def test_a_text_shorter_than_a_window_is_one_window() -> None:
    result = perplexity(tiny_model(), _tokens(10), 16)
    assert (len(result.records), result.n) == (1, 9)
    assert result.ci95[0] < result.value < result.ci95[1]
    pair = perplexity(tiny_model(), [1, 2], 16)
    assert pair.ci95 == pytest.approx((pair.value, pair.value))


def test_what_cannot_be_measured_is_an_error() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="at least 2 tokens, got 1"):
        perplexity(model, [1], 16)
    with pytest.raises(InputError, match="at most this model's context of 256 tokens, got 512"):
        perplexity(model, _tokens(20), 512)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(InputError, match="must be finite"):
        perplexity(model, _tokens(20), 16)


def test_a_loss_without_a_finite_exponential_is_an_error() -> None:
    model = tiny_model("llama_untied")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    for count in (32, 16):  # windows, and one alone
        with pytest.raises(InputError, match="loss must be finite and at most 709 nats for a perplexity, got"):
            perplexity(model, _tokens(count), 16)
