"""Generation: a batch gives the texts of each prompt alone, and texts end where they should."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.data.tokens import prompt_ids
from shears.errors import InputError
from shears.evaluation.decode import Decoder, tokens_with
from shears.models.load import cache_bytes
from tests.runtime.backends import PROMPTS, TOKENIZER, always, greedy, lively
from tests.tiny import tiny_model, tiny_tokenizer


def generate_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, batch_size: int,
    until: str = "",
) -> list[str]:  # fmt: skip
    """Return the greedy continuation of every prompt."""
    decoder = Decoder(model, tokenizer, max_new_tokens, until)
    return [answer.text for answer in decoder.answers(prompt_ids(prompts, tokenizer), batch_size)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "bloom", "mpt"])
def test_a_batch_answers_as_each_prompt_alone_without_cache(name: str) -> None:
    model = lively(name)
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert generate_answers(model, TOKENIZER, PROMPTS, 12, batch_size=3) == expected
    assert generate_answers(model, TOKENIZER, PROMPTS, 12, batch_size=1) == expected
    assert len(set(expected)) > 1


def test_a_row_ends_at_the_line_break_behind_its_first_line() -> None:
    [line] = TOKENIZER("\n")["input_ids"]
    assert generate_answers(always(line), TOKENIZER, ["a"], 4, 1, until="\n") == ["\n" * 4]


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match="prompt 2 is"):
        generate_answers(tiny_model(), TOKENIZER, ["a", ""], 2, 2)


def _log_likelihood(model: PreTrainedModel, prompt: str, text: str) -> float:
    ids = TOKENIZER(prompt + text)["input_ids"]
    start = len(TOKENIZER(prompt)["input_ids"])
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_beams_find_texts_at_least_as_likely_whatever_the_batch(name: str) -> None:
    model = lively(name)
    model.generation_config.eos_token_id = None
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None  # no end: all texts have the same length, so that likelihoods compare
    one, four = (Decoder(model, tokenizer, 3, num_beams=beams) for beams in (1, 4))
    rows = prompt_ids(PROMPTS, tokenizer)
    greedy, beams = ([answer.text for answer in decoder.answers(rows, 5)] for decoder in (one, four))
    assert [answer.text for answer in four.answers(rows, 1)] == beams
    whole = [
        (_log_likelihood(model, *each[:2]), _log_likelihood(model, each[0], each[2]))
        for each in zip(PROMPTS, greedy, beams, strict=True)
        if "\N{REPLACEMENT CHARACTER}" not in each[1] + each[2]  # bytes that are no text cannot be scored again
    ]
    assert whole
    assert all(found >= first - 1e-4 for first, found in whole)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(("model_ends", "until"), [(False, "\n"), (True, ""), (True, "\n")])
def test_a_text_ends_in_a_batch_where_it_ends_alone_though_the_tokenizer_has_no_end(
    model_ends: bool, until: str, num_beams: int
) -> None:
    """Behind a text, a batch holds padding, which is a word for this tokenizer, or more text."""
    tokenizer, model = tiny_tokenizer(), lively("llama_untied")
    breaks = tokens_with("\n", tokenizer)
    tokenizer.pad_token = tokenizer.eos_token = None
    model.generation_config.eos_token_id = [*set(range(0, 256, 5)) - breaks] if model_ends else None
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[sorted(breaks)] *= 2  # lines end
    prompts = prompt_ids([*PROMPTS, *(f"{number} apples\n" for number in range(8))], tokenizer)
    alone, beside = (Decoder(model, tokenizer, 12, until, num_beams).answers(prompts, size) for size in (1, 13))
    assert beside == alone
    assert len({len(answer.text) for answer in alone}) > 1


@pytest.mark.parametrize("limit", [1, 4])
def test_an_answer_is_cut_where_the_longest_length_comes_before_its_end(limit: int) -> None:
    prompts = prompt_ids(PROMPTS, TOKENIZER)
    going_on, ending = (Decoder(always(token), TOKENIZER, limit).answers(prompts, 3) for token in (ord("z"), 256))
    assert [answer.is_cut for answer in going_on] == [True] * len(prompts)
    assert [answer.is_cut for answer in ending] == [False] * len(prompts)


def test_a_recurrent_model_answers_in_a_batch_as_alone_and_takes_no_beams() -> None:
    model = lively("rwkv")
    expected = [greedy(model, prompt, 8) for prompt in PROMPTS]
    assert generate_answers(model, TOKENIZER, PROMPTS, 8, batch_size=3) == expected
    assert len(set(expected)) > 1
    with pytest.raises(InputError, match="cannot use beam search"):
        Decoder(model, TOKENIZER, 4, num_beams=4).answers(prompt_ids(PROMPTS, TOKENIZER), 2)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bloom"])
def test_the_bytes_of_keys_and_values_are_those_of_the_cache(name: str) -> None:
    model = tiny_model(name)
    cache = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).cache
    assert cache_bytes(model) * 3 == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
