"""A row's figures do not depend on its batch, even for models that do not ignore padding."""

import pytest
import torch

from shears.data.examples import to_example
from shears.data.tokens import prompt_ids
from shears.errors import InputError
from shears.evaluation.generate import Decoder
from shears.evaluation.scoring.score import likeliest_choices, plainly
from shears.evaluation.scoring.scorers import LossScorer
from shears.models.properties import ignores_padding
from tests.evaluation.scoring.test_score import PAD, some_rows
from tests.evaluation.test_generate import generate_answers
from tests.oracles.losses import completion_losses
from tests.runtime.generation.backends import PROMPTS, greedy, lively
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
READING = ["rwkv", "recurrent_gemma"]  # models that process padding like any other token


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "mamba", "bamba", "mixtral", *READING])
def test_models_that_ignore_padding_are_recognized(name: str) -> None:
    assert ignores_padding(tiny_model(name)) == (name not in READING)


@pytest.mark.parametrize("name", READING)
def test_losses_and_choices_are_those_of_each_row_alone(name: str) -> None:
    model = tiny_model(name)
    alone = completion_losses(model, some_rows(), PAD, 1).total
    torch.testing.assert_close(completion_losses(model, some_rows(), PAD, 8).total, alone, rtol=1e-4, atol=1e-4)
    scorer = LossScorer(model, some_rows(), PAD, 8)
    torch.testing.assert_close(scorer.measure(plainly).float(), alone, rtol=1e-4, atol=1e-4)
    asked = [{"prompt": "a" * n, "choices": [" yes", " no", " rather not"], "answer": 0} for n in range(1, 9)]
    examples = [to_example(row, "question", TOKENIZER) for row in asked]
    for one, other in zip(
        likeliest_choices(model, TOKENIZER, examples, 8), likeliest_choices(model, TOKENIZER, examples, 1), strict=True
    ):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-4)


def test_a_recurrent_model_answers_in_a_batch_as_alone() -> None:
    model = lively("rwkv")
    expected = [greedy(model, prompt, 8) for prompt in PROMPTS]
    assert generate_answers(model, TOKENIZER, PROMPTS, 8, batch_size=3) == expected
    assert len(set(expected)) > 1


def test_beams_where_the_state_cannot_be_reordered_are_an_error() -> None:
    with pytest.raises(
        InputError, match=r"num_beams must be 1 \(--num-beams 1\), got 4: Rwkv.* cannot use beam search"
    ):
        Decoder(tiny_model("rwkv"), TOKENIZER, 4, num_beams=4).answers(prompt_ids(PROMPTS, TOKENIZER), 2)
