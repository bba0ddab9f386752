"""From a super-adapter and its validation examples to an evaluator: what is kept, what is raced."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shears.adapt.load import SuperAdapter
from shears.config import SearchConfig
from shears.config.notation import num_bytes
from shears.data.batches import padding
from shears.data.examples import Example, Tokenized, load_examples, rows_fingerprint, tokenize_all
from shears.evaluation.contamination import Trained, ids_of, read_trained
from shears.evaluation.scoring.scorers import ChoiceScorer, LossScorer, Parts
from shears.models.losses import within_context
from shears.records.artifacts import training_sources
from shears.searching.measure.decoding import DecodingGauge
from shears.searching.measure.evaluators import Together
from shears.searching.measure.gauged import GaugedEvaluator
from shears.searching.measure.gauges import open_gauge
from shears.searching.measure.latency import LatencyEvaluator
from shears.searching.measure.racing import Race, parts_of
from shears.searching.measure.sizes import count_sizes, refuse_out_of_reach
from shears.searching.strategies.base import ACCURACY, LATENCY, LOSS, Goal, digest
from shears.searching.tied import TiedSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thrift:
    """How an evaluation is made cheaper: bytes of hidden states to keep (0: none), and a race (error 0: none).

    The examples are split at the looks of a race whether there is one or not, so that a race changes no whole figure.
    """

    cache_budget: str
    race_error: float = 0.0
    seed: int = 0
    race_indifference: float = 0.0

    @property
    def race(self) -> Race | None:
        """The rule by which candidates are decided early."""
        return Race(self.race_error, indifference=self.race_indifference) if self.race_error else None

    def parts(self, num_examples: int) -> Parts:
        """Return the examples' numbers in the parts that are looked at one after the other."""
        return parts_of(num_examples, self.seed)


def loss_evaluator(
    adapter: SuperAdapter, rows: Sequence[Tokenized], config: SearchConfig, thrift: Thrift
) -> GaugedEvaluator:
    """Return an evaluator of `loss`, the mean over all completion tokens in nats, and `parameters`.

    Precision `auto` is fp32 here: what one rank changes is less than what bf16 rounds, so that a search under it would
    compare rounding.
    """
    scorer = LossScorer(adapter.model, rows, padding(adapter.tokenizer), config.batch_size, thrift.parts(len(rows)))
    precision = "fp32" if config.precision == "auto" else config.precision
    gauge = open_gauge(adapter.elastic, scorer, precision, num_bytes(thrift.cache_budget))
    return GaugedEvaluator(gauge, LOSS.quality, adapter.elastic, thrift.race)


def accuracy_evaluator(
    adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, thrift: Thrift
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


@dataclass(frozen=True)
class Validation:
    """The validation examples by their fingerprint, and what measures configurations of a tied space on them.

    `qualities` are the evaluators behind `evaluator`, by figure; they know the whole space. `trained` is what the
    super-adapter and its base were trained on.
    """

    fingerprint: str
    evaluator: Together
    qualities: Mapping[str, GaugedEvaluator]
    trained: Sequence[Trained]


def open_validation(adapter: SuperAdapter, config: SearchConfig, tied: TiedSpace) -> Validation:
    """Return what a search measures; InputError for a constraint that no configuration can meet."""
    goal, sizes = Goal(config.objectives, config.constraints), count_sizes(adapter.elastic, config.figures)
    refuse_out_of_reach(goal, adapter.elastic.space, sizes)
    examples, trained = _examples(adapter, config.data, config.limit), read_trained(training_sources(adapter.record))
    _warn_of_training_data(trained, examples, config.data, "search on validation data")
    fingerprint, qualities = _qualities(adapter, config, examples)
    clocks = (LatencyEvaluator(adapter.elastic),) if LATENCY in config.figures else ()
    evaluator = Together((*qualities.values(), *clocks), sizes, goal, tied.expand)
    return Validation(fingerprint, evaluator, qualities, trained)


def _qualities(
    adapter: SuperAdapter, config: SearchConfig, examples: Sequence[Example]
) -> tuple[str, dict[str, GaugedEvaluator]]:
    """Return the fingerprint of the validation examples and what measures each quality that is asked for."""
    fingerprint, found = digest(repr(examples)), dict[str, GaugedEvaluator]()
    if ACCURACY.quality in config.figures:
        found[ACCURACY.quality] = accuracy_evaluator(adapter, examples, config, _thrift(config, ACCURACY.quality))
    if LOSS.quality in config.figures:
        rows = _tokenized(adapter, examples)
        found[LOSS.quality] = loss_evaluator(adapter, rows, config, _thrift(config, LOSS.quality))
        fingerprint = fingerprint if len(found) > 1 else rows_fingerprint(rows)
    return fingerprint, found


def _warn_of_training_data(trained: Sequence[Trained], examples: Sequence[Example], data: str, advice: str) -> None:
    for each in trained:
        if seen := sum(each.hold(ids_of(examples))):
            words = "%d of %d examples of %s stand in %s, which the super-adapter was trained on; %s"
            logger.warning(words, seen, len(examples), data, each.data, advice)


def _tokenized(adapter: SuperAdapter, examples: Sequence[Example]) -> list[Tokenized]:
    longest = within_context(adapter.model.get_base_model(), adapter.record["config"]["max_length"])
    return tokenize_all(examples, adapter.tokenizer, longest)


def _examples(adapter: SuperAdapter, data: str, limit: int | None = None) -> list[Example]:
    return load_examples(data, adapter.record["template"], adapter.tokenizer, limit)


def open_whole(
    adapter: SuperAdapter, config: SearchConfig, quality: str, data: str, limit: int | None = None
) -> GaugedEvaluator:
    """Return what measures a quality on other examples than the search's, each configuration whole."""
    return _whole(adapter, config, quality, _examples(adapter, data, limit))


def open_test(
    adapter: SuperAdapter, config: SearchConfig, quality: str, data: str, trained: Sequence[Trained]
) -> GaugedEvaluator:
    """Return the same on test examples; a warning tells how many the super-adapter was trained on."""
    examples = _examples(adapter, data)
    _warn_of_training_data(trained, examples, data, "on these a gain is no measure of what was learned")
    return _whole(adapter, config, quality, examples)


def _whole(adapter: SuperAdapter, config: SearchConfig, quality: str, examples: Sequence[Example]) -> GaugedEvaluator:
    thrift = Thrift("0", 0.0, config.seed)
    if quality == ACCURACY.quality:
        return accuracy_evaluator(adapter, examples, config, thrift)
    return loss_evaluator(adapter, _tokenized(adapter, examples), config, thrift)


def _thrift(config: SearchConfig, figure: str) -> Thrift:
    """Only what decides is raced: a candidate that is better there must not be dropped for another figure."""
    error = config.race_error if figure == config.objectives[0] else 0.0
    return Thrift(config.cache_budget, error, config.seed, config.race_indifference)
