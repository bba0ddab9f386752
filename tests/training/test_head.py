"""The output head computes only the positions before labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shears.adapt.train import train
from shears.data.example import IGNORED
from shears.data.examples import Tokenized, load_examples, to_example, tokenize_all
from shears.evaluation.scoring.score import plainly
from shears.evaluation.scoring.scorers import ChoiceScorer, LossScorer
from shears.training import loop
from shears.training.batches import pack, pad
from shears.training.losses import packed_predictions, padded_predictions
from tests.oracles.losses import completion_losses
from tests.searching.adapters import PAD
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.small_training import SETTINGS, pad_batches

ROWS = [
    Tokenized(list(range(3, 3 + length)), [IGNORED] * (length - labelled) + list(range(3, 3 + labelled)))
    for length, labelled in ((12, 2), (20, 3), (7, 1), (15, 3))
]
LABELLED, LONGEST = 9, 3


def heard(model: nn.Module) -> list[int]:
    """Return a list that every run of the head adds its number of positions to."""
    counts: list[int] = []
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].shape[:-1].numel()))
    return counts


def test_packed_rows_have_logits_where_a_label_is_predicted() -> None:
    model = tiny_model()
    counts = heard(model)
    packed_predictions(model, pack(ROWS, 40, PAD))
    assert counts == [LABELLED]


def test_padded_rows_have_logits_from_before_the_first_label_on() -> None:
    model = tiny_model()
    counts = heard(model)
    padded_predictions(model, pad(ROWS, PAD))
    assert counts == [len(ROWS) * (LONGEST + 1)]


@pytest.mark.parametrize("packing", [True, False])
def test_a_training_step_has_no_other_logits(
    packing: bool, base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[list[int]] = []
    if not packing:
        pad_batches(monkeypatch)
    trained = loop._trainer

    def listening(*arguments: Any) -> Any:
        trainer = trained(*arguments)  # what it tries of the model is over
        counts.append(heard(arguments[0].weights.model.get_base_model()))
        return trainer

    monkeypatch.setattr(loop, "_trainer", listening)
    train(base, tmp_path / "out", data=data, **{**SETTINGS, "max_steps": 1, "batch_size": 18})
    rows = tokenize_all(load_examples(data, "question", tiny_tokenizer()), tiny_tokenizer(), 512)
    labelled = [sum(label != IGNORED for label in row.labels) for row in rows]
    assert counts == [[sum(labelled)]]


@torch.no_grad()
def test_scores_have_no_other_logits() -> None:
    packed, padded = LossScorer(tiny_model(), ROWS, PAD, 4), LossScorer(tiny_model("opt"), ROWS, PAD, 1)
    assert packed.packed
    assert not padded.packed
    counts, others = heard(packed.model), heard(padded.model)
    packed.measure(plainly)
    padded.measure(plainly)
    assert counts == [LABELLED]
    assert sorted(others) == [2, 3, 4, 4]  # one more than labels, row by row
    completion_losses(packed.model, ROWS, PAD, 1)
    assert sorted(counts[-4:]) == [2, 3, 4, 4]


@torch.no_grad()
def test_choices_have_logits_where_they_are_told_apart() -> None:
    rows = [{"prompt": "a question " * n, "choices": ["y", "n"], "answer": 0} for n in range(1, 5)]
    examples = [to_example(row, "question", tiny_tokenizer()) for row in rows]
    scorer = ChoiceScorer(tiny_model(), tiny_tokenizer(), examples, 8)
    counts = heard(scorer.model)
    scorer.measure(plainly)
    assert sum(counts) == 4  # a token a choice, all choices of a question at one position
