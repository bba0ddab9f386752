"""Many configurations in one batch of generation: the answers of one after the other."""

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shears.adapt.elastic import make_elastic
from shears.adapt.load import SuperAdapter
from shears.adapt.prepare import build_space, target_modules
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.data.examples import Example, to_example
from shears.errors import InputError
from shears.evaluation.continuous import ContinuousDecoder
from shears.evaluation.generate import Decoder
from shears.searching.measure.evaluators import GaugedEvaluator
from shears.searching.measure.gauges import CONFIGS_IN_BATCH, DecodingGauge, NativeGauge, open_decoding
from tests.runtime.native.decoders import extension_is_missing
from tests.searching.adapters import deep_model, make_adapter, make_super_adapter, walk
from tests.tiny import tiny_tokenizer

CONFIG: dict[str, Any] = {
    "data": "unused", "objective": "accuracy", "device": "cpu", "precision": "fp32", "batch_size": 3,
    "max_new_tokens": 6,
}  # fmt: skip


def examples_of(adapter: SuperAdapter, num: int = 8) -> list[Example]:
    generator = random.Random(0)
    rows = [{"prompt": f"{'1' * generator.randint(1, 9)}+{n}?", "completion": f" {n}", "answer": n} for n in range(num)]
    return [to_example(row, "question", adapter.tokenizer) for row in rows]


Texts = list[list[str]]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """All texts that decoders give, measurement by measurement."""
    texts: Texts = []
    answers = Decoder.answers

    def spied(self: Decoder, *args: Any) -> list[str]:
        texts.append(answers(self, *args))
        return texts[-1]

    monkeypatch.setattr(Decoder, "answers", spied)
    return texts


@pytest.mark.parametrize("task", ["equation", "number"])
def test_answers_in_one_batch_are_those_of_one_configuration_after_the_other(task: Any, texts: Texts) -> None:
    adapter = make_super_adapter()
    gauge = DecodingGauge(adapter, examples_of(adapter), SearchConfig(**CONFIG, task=task))
    space = adapter.elastic.space
    configs = [space.maximal(), space.minimal(), *(space.random(random.Random(seed)) for seed in range(3))]
    together = gauge.measure(configs)
    alone = [gauge.measure([ranks])[0] for ranks in configs]
    for number, expected in enumerate(texts[1:]):
        assert texts[0][number :: len(configs)] == expected
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert len({str(each) for each in texts[1:]}) > 2  # configurations do answer differently


def neighbours_of(adapter: SuperAdapter, num: int) -> list[RankConfig]:
    """Return neighbours of the heuristic, those that differ in later blocks first."""
    space = adapter.elastic.space
    return list(space.neighbours(space.heuristic()))[::-1][:num]


def opened(name: str) -> tuple[SuperAdapter, DecodingGauge]:
    elastic = make_adapter(name)
    adapter = SuperAdapter(elastic.model, tiny_tokenizer(), elastic, {})
    return adapter, DecodingGauge(adapter, examples_of(adapter), SearchConfig(**CONFIG, task="number"))


ATTENTION = ("llama", "gemma2", "gpt_oss", "gpt2", "bloom", "opt", "falcon", "mpt")


@pytest.mark.parametrize(
    ("name", "has_heuristic"), [*((name, False) for name in ATTENTION), ("llama", True), ("gemma2", True)]
)
def test_prompts_are_read_from_the_first_difference_on_and_the_answers_are_the_same(
    name: str, has_heuristic: bool, texts: Texts
) -> None:
    adapter, gauge = opened(name)
    configs = neighbours_of(adapter, 5) + [adapter.elastic.space.heuristic()] * has_heuristic
    caches = gauge._caches
    assert caches is not None
    before, num_blocks = caches.prefix.num_runs, len(caches.prefix)
    gauge.measure(configs)
    ways, batches = gauge._ways(configs), 3
    expected = batches * sum(num_blocks - way.start for way in ways)
    assert caches.prefix.num_runs - before == expected < 0.9 * batches * len(configs) * num_blocks
    for ranks in configs:
        gauge.measure([ranks])
    for number, alone in enumerate(texts[1:]):
        assert texts[0][number :: len(configs)] == alone


@pytest.mark.parametrize("name", ["bamba", "lfm2"])
def test_a_cache_that_is_not_of_keys_and_values_is_filled_plainly(name: str, caplog: pytest.LogCaptureFixture) -> None:
    adapter, gauge = opened(name)
    with caplog.at_level("INFO", logger="shears"):
        configs = [adapter.elastic.space.heuristic(), *neighbours_of(adapter, 3)]
        together = gauge.measure(configs)
    assert "prompt caches are not shared, every configuration computes all blocks: " in caplog.text
    alone = [gauge.measure([ranks])[0] for ranks in configs]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_what_shares_nothing_is_read_plainly() -> None:
    adapter, gauge = opened("llama")
    space = adapter.elastic.space
    assert gauge._ways([space.maximal(), space.minimal()]) == []
    assert gauge._ways([space.heuristic()]) == []
    short = [to_example({"prompt": "1", "completion": " 1", "answer": 1}, "question", adapter.tokenizer)]
    one_token = DecodingGauge(adapter, short, SearchConfig(**CONFIG, task="number"))
    one_token._prompts = [[49]]
    assert one_token._caches is None


def test_right_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_super_adapter()
    examples = examples_of(adapter, 4)
    gauge = DecodingGauge(adapter, examples, SearchConfig(**CONFIG, task="number"))
    monkeypatch.setattr(Decoder, "answers", lambda *_: ["0", "7", "9", "1", "2", "2", "5", "3"])
    first, second = gauge.measure(walk(adapter.elastic.space, 1))
    assert (first.tolist(), second.tolist()) == ([1, 0, 1, 0], [0, 1, 1, 1])


def test_all_rows_of_a_prompt_lie_in_one_batch_however_many_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batches = make_super_adapter(), list[int]()
    activate = adapter.elastic.activate_rows

    def spied(configs: list[RankConfig]) -> None:
        batches.append(len(configs))
        activate(configs)

    monkeypatch.setattr(adapter.elastic, "activate_rows", spied)
    gauge = DecodingGauge(adapter, examples_of(adapter), SearchConfig(**CONFIG, task="number"))
    assert gauge.width == CONFIGS_IN_BATCH == 8
    gauge.measure(list(adapter.elastic.space.neighbours(adapter.elastic.space.heuristic()))[:4])
    assert batches == [3 * 4, 3 * 4, 2 * 4]


def test_masked_super_adapters_come_one_by_one() -> None:
    adapter = make_super_adapter(sparse=True)
    gauge = DecodingGauge(adapter, examples_of(adapter, 4), SearchConfig(**CONFIG, task="number"))
    assert gauge.width == 1
    configs = walk(adapter.elastic.space, 2)
    figures = GaugedEvaluator(gauge, "accuracy", adapter.elastic).many(configs)
    assert all(0 <= each["accuracy"] <= 1 for each in figures)


def test_adapters_without_ranks_by_row_come_one_by_one() -> None:
    model = deep_model("llama")
    space = build_space(model, ("q_proj", "up_proj"), (6, 4, 2))
    targets = target_modules(model, space)
    peft_model = get_peft_model(model, LoraConfig(r=6, target_modules=targets, init_lora_weights=False, use_dora=True))
    elastic = make_elastic(peft_model.eval().requires_grad_(False), space)
    adapter = SuperAdapter(peft_model, tiny_tokenizer(), elastic, {})
    gauge = DecodingGauge(adapter, examples_of(adapter, 4), SearchConfig(**CONFIG, task="number"))
    figures = GaugedEvaluator(gauge, "accuracy", elastic).many(walk(space, 2))
    assert gauge.width == 1
    assert all(0 <= each["accuracy"] <= 1 for each in figures)


@pytest.mark.skipif(extension_is_missing(), reason="the C++ extension is not built")
@pytest.mark.parametrize("sparse", [False, True])
def test_the_native_decoder_gives_the_values_of_transformers(
    sparse: bool, monkeypatch: pytest.MonkeyPatch, texts: Texts
) -> None:
    adapter = make_super_adapter(sparse)
    space = adapter.elastic.space
    examples = examples_of(adapter, 5)
    configs = [space.maximal(), space.minimal(), space.random(random.Random(0)), space.maximal()]
    native, other = (
        open_decoding(adapter, examples, SearchConfig(**CONFIG, task="number", backend=name))
        for name in ("native", "transformers")
    )
    assert (type(native), type(other)) == (NativeGauge, DecodingGauge)
    answers: Texts = []
    given = ContinuousDecoder.answers

    def spied(self: Any, prompts: Any) -> list[str]:
        answers.append(given(self, prompts))
        return answers[-1]

    monkeypatch.setattr(ContinuousDecoder, "answers", spied)
    expected = [other.measure([ranks])[0] for ranks in configs]
    assert all(map(torch.equal, native.measure(configs), expected))
    assert answers == texts
    assert len({str(each) for each in answers}) == 3  # one is asked twice


def test_a_search_falls_back_to_transformers_where_the_decoder_does_not_cover_the_model() -> None:
    adapter, _ = opened("gpt2")
    config = SearchConfig(**CONFIG, task="number")
    assert type(open_decoding(adapter, examples_of(adapter), config)) is DecodingGauge
    with pytest.raises(InputError, match="backend native must cover the model: .* not gpt2"):
        open_decoding(adapter, examples_of(adapter), config.model_copy(update={"backend": "native"}))
