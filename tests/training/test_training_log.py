"""training_log.jsonl holds what was trained: loss, tokens, learning rate and ranks of every step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shears.adapt.train import train
from shears.data.examples import load_examples, tokenize_all
from shears.models.ref import load_tokenizer, resolve
from shears.training.batches import EpochOrder
from tests.training.small_training import SETTINGS, log


@pytest.mark.parametrize("way", [{}, {"micro_batch_size": 1}])
def test_a_step_counts_the_tokens_of_its_own_examples(
    base: Path, data: str, tmp_path: Path, way: dict[str, Any]
) -> None:
    """Two epochs of 18 examples: each has four steps of four examples and one of two, in an order of its own."""
    lines = log(train(base, tmp_path / "out", data=data, sampling="uniform", **{**SETTINGS, **way, "max_steps": 10}))
    tokenizer = load_tokenizer(resolve(base))
    lengths = [len(row.input_ids) for row in tokenize_all(load_examples(data, "question", tokenizer), tokenizer, 512)]
    order = EpochOrder(lengths, 4, 0)
    orders = []
    for epoch in range(2):
        order.epoch = epoch
        orders.append(list(order))
    assert orders[0] != orders[1]
    assert [sorted(numbers) for numbers in orders] == [list(range(18))] * 2
    batches = [numbers[start : start + 4] for numbers in orders for start in range(0, 18, 4)]
    assert [line["tokens"] for line in lines] == [sum(lengths[number] for number in batch) for batch in batches]
    assert len({tuple(line["ranks"].values()) for line in lines}) > 5


def test_the_first_loss_and_the_learning_rates_have_their_closed_forms(base: Path, data: str, tmp_path: Path) -> None:
    """A new adapter changes nothing: the loss is the base's, a token. The rate rises to its peak, then falls to 0."""
    lines = log(train(base, tmp_path / "out", data=data, **{**SETTINGS, "batch_size": 18}))
    tokenizer = load_tokenizer(resolve(base))
    model = AutoModelForCausalLM.from_pretrained(base)
    losses = []
    for row in tokenize_all(load_examples(data, "question", tokenizer), tokenizer, 512):
        with torch.no_grad():
            log_probs = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        losses += [-log_probs[i, label].item() for i, label in enumerate(row.labels[1:]) if label >= 0]
    assert lines[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    rates = [0.0, 0.5, *(1 - done / 5 for done in range(5))]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2 * rate for rate in rates])
