"""Log-likelihoods: equal to one row at a time over full logits, for any batch, on several architectures."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from shears.data.examples import Example, Tokenized, to_example, tokenize
from shears.data.tokens import Segment
from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.likelihood import completion_nats, log_likelihoods, perplexity, scored_choices
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ARCHITECTURES = ["llama", "gpt2", "opt", "gemma2", "bloom", "gpt_neox"]
PAD = 256
READING = ["rwkv", "recurrent_gemma"]  # models that process padding like any other token


def some_rows() -> list[Tokenized]:
    pairs = [("a", "bc"), ("Question: how many?", " 12"), ("x" * 30, "y"), ("ab", "a longer completion"), ("q", "")]
    return [tokenize(Example((Segment(prompt, False), Segment(text, True))), TOKENIZER) for prompt, text in pairs]


def _plain_losses(model: PreTrainedModel, row: Tokenized) -> tuple[float, int]:
    """Oracle: one row, no padding, all logits, one token after the other."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    total, count = 0.0, 0
    for position in range(1, len(row.input_ids)):
        if row.labels[position] != -100:
            scores = logits[position - 1]
            total += (
                math.log(torch.exp(scores - scores.max()).sum().item())
                - (scores[row.labels[position]] - scores.max()).item()
            )
            count += 1
    return total, count


@pytest.mark.parametrize("name", [*ARCHITECTURES, *READING])
def test_batched_losses_equal_one_row_at_a_time(name: str) -> None:
    model, rows = tiny_model(name), some_rows()
    total, counts = completion_nats(model, rows, PAD, 3)
    expected = [_plain_losses(model, row) for row in rows]
    torch.testing.assert_close(total.float(), torch.tensor([each for each, _ in expected]), rtol=1e-4, atol=1e-4)
    assert counts.tolist() == [count for _, count in expected]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *READING])
def test_continuations_that_share_an_input_score_as_alone(name: str) -> None:
    model = tiny_model(name)
    pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [4, 6]), ([1, 2, 3], [7]), ([1, 2], [3, 8]), ([9] * 12, [1, 2, 3, 4])]
    found = log_likelihoods(model, pairs, PAD, batch_size=3)
    expected = [
        -_plain_losses(model, Tokenized(prompt + text, [-100] * len(prompt) + text))[0] for prompt, text in pairs
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)  # batches round differently


def test_choices_have_sums_and_means_of_log_likelihoods() -> None:
    model = tiny_model()
    row = {"prompt": "Which?", "choices": [" yes", " no", " rather not now"], "answer": 0}
    example = to_example(row, "question", TOKENIZER)
    [(found, means)] = scored_choices(model, TOKENIZER, [example], batch_size=2)
    prompt = TOKENIZER("Which?")["input_ids"]
    tokens = [TOKENIZER(text)["input_ids"] for text in example.choices]
    sums = [-_plain_losses(model, Tokenized(prompt + ids, [-100] * len(prompt) + ids))[0] for ids in tokens]
    assert found == pytest.approx(sums, rel=1e-5)  # float32 against float64
    assert means == pytest.approx([total / len(ids) for total, ids in zip(sums, tokens, strict=True)], rel=1e-5)


@pytest.mark.parametrize(
    ("prompt", "choices", "answer"),
    [("", ("ab", "c"), "ab"), ("a", ("", "c"), "c"), ("a", (), None), ("a", ("b",), "c")],
)
def test_a_row_whose_choices_have_no_likelihood_is_refused(
    prompt: str, choices: tuple[str, ...], answer: str | None
) -> None:
    """Nothing predicts a first token, and a choice without tokens would always be the likeliest."""
    example = Example((Segment(prompt, False), Segment("", True)), answer, choices)
    with pytest.raises(InputError, match="task choices needs rows with a prompt, .*, row 1 has"):
        scored_choices(tiny_model(), TOKENIZER, [example], 2)


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
