"""Log-likelihoods: equal to one row at a time over full logits, for any batch, on several architectures."""

import math

import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedModel

from shears.data.examples import Example, Segment, Tokenized, to_example, tokenize
from shears.errors import InputError
from shears.evaluation.scoring.score import build_forest, likeliest_choices, log_likelihoods
from tests.oracles.losses import completion_losses, mean_completion_loss
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ARCHITECTURES = ["llama", "gpt2", "opt", "gemma2", "bloom", "gpt_neox"]
PAD = 256


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


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batched_losses_equal_one_row_at_a_time(name: str, batch_size: int) -> None:
    model, rows = tiny_model(name), some_rows()
    losses = completion_losses(model, rows, PAD, batch_size)
    expected = [_plain_losses(model, row) for row in rows]
    torch.testing.assert_close(losses.total, torch.tensor([total for total, _ in expected]))
    assert losses.num_tokens.tolist() == [count for _, count in expected]


def test_the_mean_loss_is_per_token() -> None:
    model, rows = tiny_model(), some_rows()
    expected = [_plain_losses(model, row) for row in rows]
    mean = sum(total for total, _ in expected) / sum(count for _, count in expected)
    assert mean_completion_loss(model, rows, PAD, 2) == pytest.approx(mean, rel=1e-5)  # float32 against float64


def test_scoring_leaves_no_graph_and_only_asks_for_logits_that_count() -> None:
    model, rows = tiny_model(), some_rows()[:1]
    seen: list[torch.Size] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape))
    assert not completion_losses(model, rows, PAD, 1).total.requires_grad
    hook.remove()
    assert [shape[1] for shape in seen] == [4]  # b, c, end, and the last position, whose logits nobody needs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_continuations_that_share_an_input_score_as_alone(name: str) -> None:
    model = tiny_model(name)
    pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [4, 6]), ([1, 2, 3], [7]), ([1, 2], [3, 8]), ([9] * 12, [1, 2, 3, 4])]
    found = log_likelihoods(model, build_forest(model, pairs), PAD, batch_size=3)
    expected = [
        -_plain_losses(model, Tokenized(prompt + text, [-100] * len(prompt) + text))[0] for prompt, text in pairs
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_choices_that_differ_in_their_last_token_cost_one_forward() -> None:
    model = tiny_model()
    rows: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(out.shape[0]))
    log_likelihoods(model, build_forest(model, [([1, 2], [3, last]) for last in range(10, 14)]), PAD, batch_size=8)
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


def test_examples_keep_their_own_choices_when_their_numbers_differ() -> None:
    model = tiny_model()
    rows = [{"prompt": "a" * n, "choices": [f" {c}" for c in "xyz"[:n]], "answer": 0} for n in (3, 1, 2)]
    examples = [to_example(row, "question", TOKENIZER) for row in rows]
    together = likeliest_choices(model, TOKENIZER, examples, batch_size=2)
    alone = [likeliest_choices(model, TOKENIZER, [example], batch_size=1)[0] for example in examples]
    assert [len(choice.log_likelihoods) for choice in together] == [3, 1, 2]
    for one, other in zip(together, alone, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)  # batches round differently


@pytest.mark.parametrize("neighbour", ["a longer prompt", ""])
def test_choices_behind_an_empty_prompt_are_refused(neighbour: str) -> None:
    """Nothing predicts a first token, so its likelihood would depend on the rest of the batch."""
    examples = [Example((Segment(text, False), Segment("", True)), "ab", ("ab", "c")) for text in (neighbour, "")]
    with pytest.raises(InputError, match=f"a prompt must not be empty, number {2 if neighbour else 1} is"):
        likeliest_choices(tiny_model(), tiny_tokenizer(), examples, 2)


def test_a_choice_without_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    example = Example((Segment("Which?", False), Segment("", True)), "a", ("a", "\u200b"))
    with pytest.raises(InputError, match="every choice must have tokens, .* one of number 1 has none"):
        likeliest_choices(tiny_model(), tokenizer, [example], 2)
