"""Continuations that share their prompt's row: the log-likelihoods of separate rows, with fewer tokens."""

import random

import pytest
import torch

from shears.evaluation.scoring.score import build_forest, keeps_branches_apart, log_likelihoods
from tests.searching.adapters import PAD
from tests.tiny import tiny_model

SHARING = ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "olmo2", "opt"]
NOT_SHARING = ["bloom", "mamba", "mistral", "gemma2", "qwen3_next"]  # tiny windows are shorter than any row


def pairs_of(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Return questions of 8 to 20 tokens with 1 to 5 choices of 0 to 6 tokens, some equal, some prefixes of others."""
    generator = random.Random(seed)

    def drawn(low: int, high: int) -> list[int]:
        return [generator.randrange(256) for _ in range(generator.randint(low, high))]

    pairs = []
    for _ in range(7):
        prompt, first = drawn(8, 20), drawn(1, 6)
        pairs += [(prompt, choice) for choice in [first, first[:-1], [*first, 3], *(drawn(1, 6) for _ in range(3))]]
    generator.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("name", [*SHARING, *NOT_SHARING])
def test_log_likelihoods_equal_those_of_separate_rows(name: str) -> None:
    model, pairs = tiny_model(name), pairs_of()
    forest = build_forest(model, pairs)
    assert forest.shared == (name in SHARING)
    alone = torch.cat([log_likelihoods(model, build_forest(model, [pair]), PAD, 1) for pair in pairs])
    for batch_size in (1, 3, 50):
        torch.testing.assert_close(log_likelihoods(model, forest, PAD, batch_size), alone, rtol=1e-4, atol=1e-4)


def test_a_shared_prompt_is_computed_once() -> None:
    model, seen = tiny_model(), list[int]()
    prompt = list(range(40))
    pairs = [(prompt, [50 + choice] * 4) for choice in range(5)]
    forest = build_forest(model, pairs)
    hook = model.model.layers[0].register_forward_hook(lambda _, __, out: seen.append(out.shape[:2].numel()))
    log_likelihoods(model, forest, PAD, 8)
    hook.remove()
    assert seen == [40 + 5 * 3] == [forest.num_positions(8)]  # in place of 5 * 43


def test_little_to_share_and_empty_prompts_stay_apart() -> None:
    model = tiny_model()
    assert not build_forest(model, [([1, 2, 3], [number, 5, 6, 7, 8, 9, 10]) for number in range(2)]).shared
    assert not build_forest(model, [([], [number, 5, 6]) for number in range(9)]).shared
    last = [([1, 2, 3], [4, number]) for number in range(9)]  # one input for all
    assert not build_forest(model, last).shared


def test_rows_beyond_a_sliding_window_stay_apart() -> None:
    model = tiny_model("mistral", sliding_window=64)
    assert keeps_branches_apart(model, 64)
    assert not keeps_branches_apart(model, 65)
