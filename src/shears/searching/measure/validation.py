"""From a super-adapter and its validation examples to evaluators."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shears.adapt.load import SuperAdapter
from shears.config import SearchConfig, TrainConfig
from shears.config.notation import num_bytes
from shears.data.examples import Example, Tokenized, load_examples, rows_fingerprint, tokenize_all
from shears.evaluation.contamination import Trained, ids_of, read_trained
from shears.evaluation.scoring.scorers import ChoiceScorer, LossScorer
from shears.models.properties import within_context
from shears.records.artifacts import training_sources
from shears.searching.measure.evaluators import (
    CombinedEvaluator,
    GaugedEvaluator,
    LatencyEvaluator,
    count_sizes,
    refuse_out_of_reach,
)
from shears.searching.measure.gauges import Gauge, open_decoding, open_gauge
from shears.searching.strategies.base import ACCURACY, LATENCY, LOSS, Goal, digest
from shears.searching.tied import TiedSpace
from shears.training.batches import padding

logger = logging.getLogger(__name__)


def loss_evaluator(adapter: SuperAdapter, rows: Sequence[Tokenized], config: SearchConfig) -> GaugedEvaluator:
    """Return an evaluator of `loss`, the mean over all completion tokens in nats, and `parameters`.

    Precision `auto` is fp32 here: one rank changes the loss by less than bf16 rounds, so that a
    search in bf16 would compare rounding errors.
    """
    scorer = LossScorer(adapter.model, rows, padding(adapter.tokenizer), config.batch_size)
    precision = "fp32" if config.precision == "auto" else config.precision
    gauge = open_gauge(adapter.elastic, scorer, precision, num_bytes(config.cache_budget))
    return GaugedEvaluator(gauge, LOSS.quality, adapter.elastic)


def accuracy_evaluator(adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig) -> GaugedEvaluator:
    """Return an evaluator of `accuracy`, the share of right answers to the task, and `parameters`."""
    gauge: Gauge
    if config.task == "choices":
        scorer = ChoiceScorer(adapter.model, adapter.tokenizer, examples, config.batch_size)
        gauge = open_gauge(adapter.elastic, scorer, config.precision, num_bytes(config.cache_budget))
    else:
        gauge = open_decoding(adapter, examples, config)
    return GaugedEvaluator(gauge, ACCURACY.quality, adapter.elastic)


@dataclass(frozen=True)
class ValidationEvaluators:
    """The validation examples by their fingerprint, and the evaluator of a tied space on them.

    `qualities` are the evaluators behind `evaluator`, by figure; they take configurations of the
    whole space. `trained` are the data that the super-adapter and its base were trained on.
    """

    fingerprint: str
    evaluator: CombinedEvaluator
    qualities: Mapping[str, GaugedEvaluator]
    trained: Sequence[Trained]


def open_validation(adapter: SuperAdapter, config: SearchConfig, tied: TiedSpace) -> ValidationEvaluators:
    """Return the evaluators of a search; InputError for a bound that no configuration can meet."""
    goal = Goal(config.objectives, config.constraints)
    sizes = count_sizes(adapter.elastic, config.figures)
    refuse_out_of_reach(goal, adapter.elastic.space, sizes)
    examples = _examples(adapter, config, config.data, config.limit)
    trained = read_trained(training_sources(adapter.record))
    _warn_of_training_data(trained, examples, config.data, "search on validation data")
    fingerprint = digest(repr(examples))
    qualities: dict[str, GaugedEvaluator] = {}
    if ACCURACY.quality in config.figures:
        qualities[ACCURACY.quality] = accuracy_evaluator(adapter, examples, config)
    if LOSS.quality in config.figures:
        rows = _tokenized(adapter, examples)
        qualities[LOSS.quality] = loss_evaluator(adapter, rows, config)
        if len(qualities) == 1:
            fingerprint = rows_fingerprint(rows)
    clocks = (LatencyEvaluator(adapter.elastic),) if LATENCY in config.figures else ()
    evaluator = CombinedEvaluator((*qualities.values(), *clocks), sizes, goal, tied.expand)
    return ValidationEvaluators(fingerprint, evaluator, qualities, trained)


def open_quality(
    adapter: SuperAdapter,
    config: SearchConfig,
    quality: str,
    data: str,
    limit: int | None = None,
    trained: Sequence[Trained] = (),
) -> GaugedEvaluator:
    """Return an evaluator of one quality on some examples, without a cache of hidden states.

    Warn of examples that stand in the data of `trained`.
    """
    examples = _examples(adapter, config, data, limit)
    _warn_of_training_data(trained, examples, data, "a gain on them does not show what was learned")
    config = config.model_copy(update={"cache_budget": "0"})
    if quality == ACCURACY.quality:
        return accuracy_evaluator(adapter, examples, config)
    return loss_evaluator(adapter, _tokenized(adapter, examples), config)


def _warn_of_training_data(trained: Sequence[Trained], examples: Sequence[Example], data: str, advice: str) -> None:
    for each in trained:
        if num_seen := sum(each.hold(ids_of(examples))):
            logger.warning(
                "%d of %d examples of %s stand in %s, which the super-adapter was trained on; %s",
                num_seen, len(examples), data, each.data, advice,
            )  # fmt: skip


def _tokenized(adapter: SuperAdapter, examples: Sequence[Example]) -> list[Tokenized]:
    trained = TrainConfig.of_record(adapter.record["config"])
    longest = within_context(adapter.model.get_base_model(), trained["max_length"])
    return tokenize_all(examples, adapter.tokenizer, longest)


def _examples(adapter: SuperAdapter, config: SearchConfig, data: str, limit: int | None) -> list[Example]:
    return load_examples(data, adapter.record["template"], adapter.tokenizer, limit, columns=config.columns)
