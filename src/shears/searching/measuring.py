"""From a super-adapter and its validation examples to an evaluator: what is kept, what is raced."""

from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.load import SuperAdapter
from shears.data.examples import Example, Tokenized
from shears.evaluation.score import padding
from shears.evaluation.scorers import ChoiceScorer, LossScorer, Parts
from shears.recipe import SearchConfig
from shears.searching.decoding import DecodingGauge
from shears.searching.evaluators import GaugedEvaluator
from shears.searching.gauges import open_gauge
from shears.searching.racing import Race, parts_of
from shears.searching.strategy import ACCURACY, LOSS
from shears.sparsity.activations import num_bytes


@dataclass(frozen=True)
class Thrift:
    """How an evaluation is made cheaper: bytes of hidden states to keep (0: none), and the error of a race (0: none).

    The examples are split at the looks of a race whether there is one or not, so that a race changes no whole figure.
    """

    cache_budget: str = "2GB"
    race_error: float = 0.0
    seed: int = 0

    @property
    def race(self) -> Race | None:
        """The rule by which candidates are dropped."""
        return Race(self.race_error) if self.race_error else None

    def parts(self, num_examples: int) -> Parts:
        """Return the examples' numbers in the parts that are looked at one after the other."""
        return parts_of(num_examples, self.seed)


USUAL = Thrift()


def loss_evaluator(
    adapter: SuperAdapter, rows: Sequence[Tokenized], config: SearchConfig, thrift: Thrift = USUAL
) -> GaugedEvaluator:
    """Return an evaluator of `loss`, the mean over all completion tokens in nats, and `parameters`."""
    scorer = LossScorer(adapter.model, rows, padding(adapter.tokenizer), config.batch_size, thrift.parts(len(rows)))
    gauge = open_gauge(adapter.elastic, scorer, config.precision, num_bytes(thrift.cache_budget))
    return GaugedEvaluator(gauge, LOSS.quality, adapter.elastic, thrift.race)


def accuracy_evaluator(
    adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, thrift: Thrift = USUAL
) -> GaugedEvaluator:
    """Return an evaluator of `accuracy`, the share of examples the task counts as right, and `parameters`."""
    parts = thrift.parts(len(examples))
    if config.task != "choices":
        return GaugedEvaluator(
            DecodingGauge(adapter, examples, config, parts), ACCURACY.quality, adapter.elastic, thrift.race
        )
    scorer = ChoiceScorer(adapter.model, adapter.tokenizer, examples, config.batch_size, parts)
    gauge = open_gauge(adapter.elastic, scorer, config.precision, num_bytes(thrift.cache_budget))
    return GaugedEvaluator(gauge, ACCURACY.quality, adapter.elastic, thrift.race)
