"""Generated answers in search: right ones count; the native decoder and transformers give the same."""

import random
from typing import Any

import pytest
import torch

from shears.adapt.load import SuperAdapter
from shears.config import SearchConfig
from shears.data.examples import Example, to_example
from shears.errors import InputError
from shears.evaluation.continuous import ContinuousDecoder
from shears.evaluation.generate import Decoder
from shears.evaluation.records import WrittenText
from shears.searching.measure.evaluators import GaugedEvaluator
from shears.searching.measure.gauges import DecodingGauge, NativeGauge, open_decoding
from tests.runtime.native.decoders import extension_is_missing
from tests.searching.adapters import make_adapter, make_super_adapter
from tests.tiny import tiny_tokenizer

CONFIG: dict[str, Any] = {
    "data": "unused", "objective": "accuracy", "device": "cpu", "precision": "fp32", "batch_size": 3,
    "max_new_tokens": 6,
}  # fmt: skip


def examples_of(adapter: SuperAdapter, num: int = 8) -> list[Example]:
    generator = random.Random(0)
    rows = [{"prompt": f"{'1' * generator.randint(1, 9)}+{n}?", "completion": f" {n}", "answer": n} for n in range(num)]
    return [to_example(row, "question", adapter.tokenizer) for row in rows]


Texts = list[list[WrittenText]]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """All texts that decoders give, measurement by measurement."""
    texts: Texts = []
    answers = Decoder.answers

    def spied(self: Decoder, *args: Any) -> list[WrittenText]:
        texts.append(answers(self, *args))
        return texts[-1]

    monkeypatch.setattr(Decoder, "answers", spied)
    return texts


def test_right_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_super_adapter()
    gauge = DecodingGauge(adapter, examples_of(adapter, 4), SearchConfig(**CONFIG, task="number"))
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText(text, text > "4") for text in "0925"])
    ranks = adapter.elastic.space.heuristic()
    assert gauge.num_cut(ranks) is None
    assert gauge.measure(ranks).tolist() == [1, 0, 1, 0]
    figures = GaugedEvaluator(gauge, "accuracy", adapter.elastic)(ranks)
    assert (figures["accuracy"], figures["cut"]) == (0.5, 2)


def test_json_answers_count_where_the_whole_object_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_super_adapter()
    row = {"prompt": "1?", "completion": '{"a": 1, "b": 2}'}
    examples = [to_example(row, "question", adapter.tokenizer)] * 2
    gauge = DecodingGauge(adapter, examples, SearchConfig(**CONFIG, task="json"))
    texts = ['{"b": 2, "a": 1}', '{"a": 1}']
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText(text, False) for text in texts])
    assert gauge.measure(adapter.elastic.space.heuristic()).tolist() == [1, 0]


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

    def spied(self: Any, prompts: Any) -> list[WrittenText]:
        answers.append(given(self, prompts))
        return answers[-1]

    monkeypatch.setattr(ContinuousDecoder, "answers", spied)
    expected = [other.measure(ranks) for ranks in configs]
    assert all(map(torch.equal, map(native.measure, configs), expected))
    assert answers == texts
    assert len({str(each) for each in answers}) == 3  # one is asked twice


def test_a_search_falls_back_to_transformers_where_the_decoder_does_not_cover_the_model() -> None:
    elastic = make_adapter("gpt2")
    adapter = SuperAdapter(elastic.model, tiny_tokenizer(), elastic, {})
    config = SearchConfig(**CONFIG, task="number")
    assert type(open_decoding(adapter, examples_of(adapter), config)) is DecodingGauge
    with pytest.raises(InputError, match="backend native must cover the model: .* not gpt2"):
        open_decoding(adapter, examples_of(adapter), config.model_copy(update={"backend": "native"}))
