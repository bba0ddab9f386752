"""Many configurations in one batch of generation: the answers of one after the other."""

import random
from typing import Any

import pytest
import torch

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.data.examples import Example, to_example
from shears.evaluation.generate import Decoder
from shears.recipe import SearchConfig
from shears.searching import decoding
from shears.searching.decoding import DecodingGauge
from shears.searching.gauged import GaugedEvaluator
from tests.searching.adapters import make_super_adapter, walk

CONFIG: dict[str, Any] = {
    "data": "unused", "objective": "accuracy", "device": "cpu", "precision": "fp32", "batch_size": 3,
    "max_new_tokens": 6,
}  # fmt: skip


def examples_of(adapter: SuperAdapter, num: int = 8) -> list[Example]:
    generator = random.Random(0)
    rows = [{"prompt": f"{'1' * generator.randint(1, 9)}+{n}?", "completion": f" {n}", "answer": n} for n in range(num)]
    return [to_example(row, "question", adapter.tokenizer) for row in rows]


@pytest.mark.parametrize("task", ["equation", "number"])
def test_answers_in_one_batch_are_those_of_one_configuration_after_the_other(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_super_adapter()
    gauge = DecodingGauge(
        adapter, examples_of(adapter), SearchConfig(**CONFIG, task=task), [[1, 5], [0, 2, 3, 4, 6, 7]]
    )
    texts: list[list[str]] = []
    answers = Decoder.answers

    def spied(self: Decoder, *args: Any) -> list[str]:
        texts.append(answers(self, *args))
        return texts[-1]

    monkeypatch.setattr(Decoder, "answers", spied)
    space, differing = adapter.elastic.space, set[str]()
    configs = [space.maximal(), space.minimal(), *(space.random(random.Random(seed)) for seed in range(3))]
    for part in range(2):
        texts.clear()
        together = gauge.measure(configs, part)
        alone = [gauge.measure([ranks], part)[0] for ranks in configs]
        differing |= {str(each) for each in texts[1:]}
        for number, expected in enumerate(texts[1:]):
            assert texts[0][number :: len(configs)] == expected
        assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert len(differing) > 2  # configurations do answer differently


def test_right_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_super_adapter()
    examples = examples_of(adapter, 4)
    gauge = DecodingGauge(adapter, examples, SearchConfig(**CONFIG, task="number"))
    monkeypatch.setattr(Decoder, "answers", lambda *_: ["0", "7", "9", "1", "2", "2", "5", "3"])
    first, second = gauge.measure(walk(adapter.elastic.space, 1), 0)
    assert (first.tolist(), second.tolist()) == ([1, 0, 1, 0], [0, 1, 1, 1])


def test_all_rows_of_a_prompt_lie_in_one_batch_however_many_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batches = make_super_adapter(), list[int]()
    activate = adapter.elastic.activate_rows

    def spied(configs: list[RankConfig]) -> None:
        batches.append(len(configs))
        activate(configs)

    monkeypatch.setattr(adapter.elastic, "activate_rows", spied)
    gauge = DecodingGauge(adapter, examples_of(adapter), SearchConfig(**CONFIG, task="number"))
    assert gauge.width == decoding.WIDTH == 8
    gauge.measure(list(adapter.elastic.space.neighbours(adapter.elastic.space.heuristic()))[:4], 0)
    assert batches == [3 * 4, 3 * 4, 2 * 4]


def test_masked_super_adapters_come_one_by_one() -> None:
    adapter = make_super_adapter(sparse=True)
    gauge = DecodingGauge(adapter, examples_of(adapter, 4), SearchConfig(**CONFIG, task="number"))
    assert gauge.width == 1
    configs = walk(adapter.elastic.space, 2)
    figures = GaugedEvaluator(gauge, "accuracy", adapter.elastic).many(configs)
    assert all(0 <= each["accuracy"] <= 1 for each in figures)
