"""Values by example: equal to one row at a time, in padded batches."""

import pytest
import torch

from shears.data.examples import Tokenized, to_example
from shears.errors import InputError
from shears.evaluation.scoring.score import likeliest_choices, plainly
from shears.evaluation.scoring.scorers import ChoiceScorer, LossScorer
from tests.oracles.losses import completion_losses
from tests.searching.adapters import PAD, make_rows
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "mamba"])
def test_losses_equal_those_of_separate_rows(name: str) -> None:
    model, rows = tiny_model(name), make_rows()
    scorer = LossScorer(model, rows, PAD, 3)
    expected = completion_losses(model, rows, PAD, 1)
    torch.testing.assert_close(scorer.measure(plainly), expected.total.double(), rtol=1e-4, atol=1e-4)
    assert scorer.weights.tolist() == expected.num_tokens.tolist()


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_rows_without_labels_lose_nothing_and_nothing_predicts_a_first_token(name: str) -> None:
    model = tiny_model(name)
    rows = [Tokenized([1, 2, 3], [-100] * 3), Tokenized([4, 5, 6], [4, 5, 6])]
    scorer = LossScorer(model, rows, PAD, 1)
    alone = LossScorer(model, rows[1:], PAD, 1).measure(plainly)
    torch.testing.assert_close(scorer.measure(plainly), torch.tensor([0.0, alone.item()], dtype=torch.float64))
    both = LossScorer(model, rows, PAD, 2).measure(plainly)
    torch.testing.assert_close(both, torch.tensor([0.0, alone.item()], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert scorer.weights.tolist() == [0, 2]


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(InputError, match="completion tokens"):
        LossScorer(tiny_model(), [Tokenized([1, 2], [-100, -100])], PAD, 1)
    with pytest.raises(InputError, match="choices"):
        ChoiceScorer(tiny_model(), tiny_tokenizer(), [to_example({"prompt": "a"}, "question", tiny_tokenizer())], 1)


def test_a_choice_without_text_is_an_error() -> None:
    row = {"prompt": "a", "choices": ["", "x"], "answer": 1}
    with pytest.raises(InputError, match="every choice must have text.* row 1 has"):
        ChoiceScorer(tiny_model(), tiny_tokenizer(), [to_example(row, "question", tiny_tokenizer())], 1)


def test_choices_are_right_as_they_are_chosen() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = [{"prompt": "a" * n, "choices": [" yes", " no", " rather not"], "answer": n % 3} for n in range(1, 9)]
    examples = [to_example(row, "question", tokenizer) for row in rows]
    scorer = ChoiceScorer(model, tokenizer, examples, 4)
    chosen = likeliest_choices(model, tokenizer, examples, 4)
    right = [
        float(example.choices[choice.likeliest] == example.answer)
        for example, choice in zip(examples, chosen, strict=True)
    ]
    assert scorer.measure(plainly).tolist() == right


def test_num_positions_counts_the_tokens_of_all_forwards() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = [{"prompt": "a" * n, "choices": [" yes", " no"], "answer": 0} for n in range(1, 9)]
    examples = [to_example(row, "question", tokenizer) for row in rows]
    for scorer in (LossScorer(model, make_rows(), PAD, 5), ChoiceScorer(model, tokenizer, examples, 3)):
        seen: list[int] = []
        hook = model.model.layers[0].register_forward_hook(
            lambda _, __, out, seen=seen: seen.append(out[..., 0].numel())
        )
        scorer.measure(plainly)
        hook.remove()
        assert sum(seen) == scorer.num_positions()
