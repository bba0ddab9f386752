"""Shared prefixes: the bits of a whole evaluation, of fewer blocks, at any budget and on many architectures."""

import logging
import random

import pytest
import torch

from shears.adapt.space import RankConfig
from shears.data.examples import to_example
from shears.evaluation.scoring.scorers import ChoiceScorer, LossScorer
from shears.searching.measure.gauges import PrefixGauge, WholeGauge, open_gauge
from tests.searching.adapters import PAD, make_adapter, make_rows, walk
from tests.tiny import tiny_tokenizer

PLENTY = 10**9
ARCHITECTURES = ["llama", "gemma2", "gpt2", "qwen3", "mistral", "gpt_neox", "opt", "bloom"]


def assert_same_bits(gauge: WholeGauge, whole: WholeGauge, configs: list[RankConfig], seed: int = 0) -> None:
    """Measure a walk, with an anchor that changes now and then, to what was measured last or earlier or never."""
    generator, known = random.Random(seed), list[RankConfig]()
    for ranks in configs:
        assert torch.equal(gauge.measure(ranks), whole.measure(ranks))
        known.append(ranks)
        gauge.anchor(generator.choice([ranks, generator.choice(known), gauge.elastic.space.random(generator)]))


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in ARCHITECTURES), ("llama", "bf16"), ("opt", "bf16")]
)
def test_values_have_the_bits_of_whole_forwards(name: str, precision: str) -> None:
    elastic = make_adapter(name)
    scorer = LossScorer(elastic.model, make_rows(), PAD, 4)
    gauge = open_gauge(elastic, scorer, precision, PLENTY)
    assert isinstance(gauge, PrefixGauge)
    assert gauge.kept == (1, 2, 3)
    assert_same_bits(gauge, WholeGauge(elastic, scorer, precision), walk(elastic.space, 6))


@pytest.mark.parametrize("seed", range(2))
def test_anchors_that_were_never_measured_or_not_completed_have_the_same_bits(seed: int) -> None:
    elastic, generator = make_adapter(), random.Random(seed)
    scorer = LossScorer(elastic.model, make_rows(), PAD, 4)
    gauge, whole = open_gauge(elastic, scorer, "fp32", PLENTY), WholeGauge(elastic, scorer, "fp32")
    for ranks in walk(elastic.space, 14, seed):
        if generator.random() < 0.6:
            assert torch.equal(gauge.measure(ranks), whole.measure(ranks))
        if generator.random() < 0.7:
            gauge.anchor(ranks)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_budgets_keep_some_blocks_and_the_same_bits(count: int) -> None:
    elastic = make_adapter(blocks=7)
    scorer = LossScorer(elastic.model, make_rows(), PAD, 4)
    each = 2 * scorer.num_positions() * 32 * 4
    gauge = open_gauge(elastic, scorer, "fp32", each * count + 1)
    assert isinstance(gauge, PrefixGauge)
    assert len(gauge.kept) == count
    assert_same_bits(gauge, WholeGauge(elastic, scorer, "fp32"), walk(elastic.space, 6))
    tapes = [tape for tape in (gauge._anchor, gauge._last) if tape is not None]
    tensors = {id(tensor): tensor for tape in tapes for states in tape.states for tensor in states.values()}
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= each * count


def test_masked_super_adapters_have_the_same_bits() -> None:
    elastic = make_adapter(sparse=True)
    scorer = LossScorer(elastic.model, make_rows(), PAD, 4)
    gauge = open_gauge(elastic, scorer, "fp32", PLENTY)
    assert isinstance(gauge, PrefixGauge)
    assert_same_bits(gauge, WholeGauge(elastic, scorer, "fp32"), walk(elastic.space, 5))


def test_choices_have_the_same_answers() -> None:
    elastic, tokenizer = make_adapter(), tiny_tokenizer()
    rows = [
        {"prompt": "a" * n + "?", "choices": [f" {c}" * (n % 3 + 2) for c in "xyz"[: n % 3 + 1]], "answer": 0}
        for n in range(1, 13)
    ]
    examples = [to_example(row, "question", tokenizer) for row in rows]
    scorer = ChoiceScorer(elastic.model, tokenizer, examples, 4)
    gauge = open_gauge(elastic, scorer, "fp32", PLENTY)
    assert isinstance(gauge, PrefixGauge)
    assert_same_bits(gauge, WholeGauge(elastic, scorer, "fp32"), walk(elastic.space, 5))


def test_only_blocks_from_the_first_difference_on_run_and_the_last_measured_becomes_the_anchor_for_nothing() -> None:
    elastic = make_adapter()
    gauge = open_gauge(elastic, LossScorer(elastic.model, make_rows(), PAD, 100), "fp32", PLENTY)
    assert isinstance(gauge, PrefixGauge)

    def runs(ranks: RankConfig, anchor: bool = False) -> int:
        before = gauge.prefix.num_runs
        if anchor:
            gauge.anchor(ranks)
        else:
            gauge.measure(ranks)
        return gauge.prefix.num_runs - before

    space = elastic.space
    heuristic = space.heuristic()
    of_block = {index: [g for g in space.ranks if g.startswith(f"layers.{index}.")] for index in range(4)}
    second = RankConfig({**heuristic, of_block[2][0]: 6})
    third = RankConfig({**second, of_block[1][0]: 2, of_block[3][0]: 2})
    assert runs(heuristic) == 4  # all
    assert runs(heuristic, anchor=True) == 0
    assert runs(second) == 2  # blocks 2 and 3
    assert runs(second, anchor=True) == 0
    assert runs(heuristic) == 2
    assert runs(third) == 3
    assert runs(third, anchor=True) == 0
    assert runs(second) == 3
    assert runs(heuristic, anchor=True) == 0  # not the one measured last:
    assert runs(second) == 3 + 2  # redone from block 1 on, where something is measured against it
    assert runs(third) == 3
    assert runs(heuristic, anchor=True) == 0


def test_without_a_budget_or_where_a_forward_cannot_begin_in_the_middle_all_blocks_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    elastic = make_adapter()
    scorer = LossScorer(elastic.model, make_rows(), PAD, 100)
    assert type(open_gauge(elastic, scorer, "fp32", 0)) is WholeGauge
    with caplog.at_level(logging.INFO):
        assert type(open_gauge(elastic, scorer, "fp32", 1)) is WholeGauge
        layers = elastic.model.get_base_model().model.layers
        layers[2] = layers[1]
        gauge = open_gauge(elastic, scorer, "fp32", PLENTY)
    assert type(gauge) is WholeGauge
    assert all(record.message.startswith("every evaluation computes all blocks") for record in caplog.records)
    assert len(caplog.records) == 2
    assert torch.isfinite(gauge.measure(elastic.space.heuristic())).all()
