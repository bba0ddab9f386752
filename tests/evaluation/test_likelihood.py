"""Log-likelihoods: equal to one row at a time over full logits, for any batch, on several architectures."""

import math

import pytest
import torch
from transformers import PreTrainedModel

from shears.data.chat_template import Segment
from shears.data.examples import Example, Tokenized, to_example, tokenize
from shears.errors import InputError
from shears.evaluation.likelihood import completion_nats, likeliest_choices, log_likelihoods
from tests.tiny import LONGEST, tiny_model, tiny_tokenizer

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


def test_choices_that_differ_in_their_last_token_cost_one_forward() -> None:
    model = tiny_model()
    rows: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(out.shape[0]))
    log_likelihoods(model, [([1, 2], [3, last]) for last in range(10, 14)], PAD, batch_size=8)
    hook.remove()
    assert rows == [1]


def test_the_likeliest_choice_wins_by_sum_and_by_mean() -> None:
    model = tiny_model()
    row = {"prompt": "Which?", "choices": [" yes", " no", " rather not now"], "answer": 0}
    example = to_example(row, "question", TOKENIZER)
    (choice,) = likeliest_choices(model, TOKENIZER, [example], batch_size=2)
    prompt = TOKENIZER("Which?")["input_ids"]
    tokens = [TOKENIZER(text)["input_ids"] for text in example.choices]
    sums = [-_plain_losses(model, Tokenized(prompt + ids, [-100] * len(prompt) + ids))[0] for ids in tokens]
    assert choice.log_likelihoods == pytest.approx(sums, rel=1e-5)  # float32 against float64
    assert choice.likeliest == max(range(3), key=sums.__getitem__)
    assert choice.likeliest_per_token == max(range(3), key=lambda index: sums[index] / len(tokens[index]))


@pytest.mark.parametrize(
    ("prompt", "choices", "answer"),
    [("", ("ab", "c"), "ab"), ("a", ("", "c"), "c"), ("a", (), None), ("a", ("b",), "c")],
)
def test_a_row_whose_choices_have_no_likelihood_is_refused(
    prompt: str, choices: tuple[str, ...], answer: str | None
) -> None:
    """Nothing predicts a first token, and a choice without tokens would always be the likeliest."""
    example = Example((Segment(prompt, False), Segment("", True)), answer, choices)
    with pytest.raises(InputError, match="choices need rows with a prompt, .*, row 1 has"):
        likeliest_choices(tiny_model(), TOKENIZER, [example], 2)


def test_prompts_beyond_the_table_of_positions_are_refused_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    long = to_example({"prompt": "a" * (LONGEST + 5), "choices": ["b", "c"], "answer": 0}, "question", TOKENIZER)
    with pytest.raises(InputError, match="data cannot be used: index out of range"):
        likeliest_choices(tiny_model("gpt2"), TOKENIZER, [long], 2)
    assert "their figures mean little" in caplog.text
